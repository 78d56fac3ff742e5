"""Attention rollout, patchout and masked padding: which patches a prediction depends on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ast_core.config import AugmentConfig, FrontEndConfig, ModelConfig
from ast_core.errors import UserError
from ast_core.evaluation.attention_rollout import attention_rollout
from ast_core.model.transformer import AST
from ast_core.training.augment import patchout
from ast_core.weights.ensemble_mean import Member

CONFIG = ModelConfig(backbone="ast_micro", init="scratch")


def make_model(config: ModelConfig = CONFIG) -> AST:
    torch.manual_seed(0)
    return AST(config, 128, 128, 4).eval()


def test_rollout_is_largest_at_the_attended_patch() -> None:
    model = make_model(dataclasses.replace(CONFIG, freq_stride=16, time_stride=16))
    with torch.no_grad():  # one patch's key is like every query
        for parameter in model.blocks[0].attn.qkv.parameters():
            parameter.zero_()
        model.blocks[0].attn.qkv.weight[:96] = 40 * torch.eye(96)
        model.blocks[0].attn.qkv.weight[96:192] = 40 * torch.eye(96)
        model.cls_token.copy_(model.pos_embed[:, 2 + 3 * 8 + 5] - model.pos_embed[:, 0])
        model.dist_token.copy_(model.pos_embed[:, 2 + 3 * 8 + 5] - model.pos_embed[:, 1])
        model.patch_proj.weight.zero_()
        model.patch_proj.bias.zero_()
    member = Member("m", model, FrontEndConfig(target_frames=128), 0.0, 0.5, "bce", CONFIG)
    share_TM = attention_rollout(member, torch.zeros(128, 128))
    assert share_TM.shape == (128, 128)
    frame, bin_ = divmod(int(share_TM.argmax()), 128)
    assert (bin_ // 16, frame // 16) == (3, 5)
    assert share_TM.min() >= 0


def test_patchout_depends_on_the_position_and_removes_rows_columns_and_patches() -> None:
    config = AugmentConfig(patchout_freq=4, patchout_time=40)
    kept_BK = patchout(config, 0, 1, np.array([5, 9]), (12, 99))
    assert kept_BK is not None
    assert kept_BK.shape == (2, 8 * 59)
    for kept_K in kept_BK:
        assert len(set(kept_K // 99)) == 8
        assert len(set(kept_K % 99)) == 59
    alone_BK = patchout(config, 0, 1, np.array([9]), (12, 99))
    assert alone_BK is not None
    assert (alone_BK[0] == kept_BK[1]).all()
    assert (kept_BK[0] != kept_BK[1]).any()
    some = patchout(AugmentConfig(patchout_any=100), 0, 1, np.arange(400), (12, 99))
    assert some is not None
    share_P = np.bincount(some.ravel(), minlength=12 * 99) / 400
    assert abs(share_P.mean() - (1 - 100 / 1188)) < 1e-9
    assert share_P.std() < 3 * np.sqrt(100 / 1188 / 400)
    assert patchout(AugmentConfig(), 0, 1, np.arange(3), (12, 99)) is None
    with pytest.raises(UserError, match="remove all of 12 x 99 patches"):
        patchout(AugmentConfig(patchout_freq=12), 0, 1, np.arange(3), (12, 99))


def test_logits_do_not_depend_on_removed_patches() -> None:
    model = make_model()
    fbank_BTM = torch.randn(2, 128, 128)
    patches = model.grid[0] * model.grid[1]
    every_BK = torch.arange(patches).expand(2, -1)
    torch.testing.assert_close(model(fbank_BTM, None, every_BK), model(fbank_BTM))
    first_column_BK = torch.arange(0, patches, model.grid[1]).expand(2, -1)
    changed_BTM = fbank_BTM.clone()
    changed_BTM[:, 16:] += 1
    torch.testing.assert_close(model(fbank_BTM, None, first_column_BK), model(changed_BTM, None, first_column_BK))


def test_logits_do_not_depend_on_masked_padding() -> None:
    model = make_model(dataclasses.replace(CONFIG, mask_padding=True))
    fbank_BTM = torch.randn(2, 128, 128)
    frames_B = torch.tensor([60, 128])
    changed_BTM = fbank_BTM.clone()
    changed_BTM[0, 66:] = 0  # the patch that starts at frame 50 is the last that holds sound
    before_BC, after_BC = model(fbank_BTM, frames_B), model(changed_BTM, frames_B)
    torch.testing.assert_close(before_BC, after_BC)
    assert not torch.allclose(model(fbank_BTM), model(changed_BTM))
    torch.testing.assert_close(model(fbank_BTM, frames_B)[1], model(fbank_BTM)[1])
