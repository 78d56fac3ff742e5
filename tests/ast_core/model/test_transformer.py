"""The model's shapes and published rules, and weights in the two published formats, which the tests make."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ast_core.config import ModelConfig
from ast_core.errors import UserError
from ast_core.model.transformer import AST, patch_grid
from ast_core.weights.positions import adapt_positions
from ast_core.weights.pretrained import initialise

TINY = ModelConfig(backbone="deit_tiny_distilled_patch16_224", init="scratch")


@pytest.mark.parametrize(("stride", "patches"), [(10, 1212), (12, 850), (14, 657), (16, 512)])
def test_published_patch_counts(stride, patches):
    freq, time = patch_grid(replace(TINY, freq_stride=stride, time_stride=stride), 128, 1024)
    assert freq * time == patches


def test_forward_and_every_parameter_gets_a_gradient():
    model = AST(replace(TINY, backbone="ast_micro"), 128, 100, 7)
    logits = model(torch.randn(2, 100, 128))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("patch", "size"), [((128, 8), (128, 400)), ((16, 16), (128, 250)), ((16, 8), (50, 101))])
def test_patches_without_overlap_equal_the_convolution_and_its_gradient(patch, size) -> None:
    torch.manual_seed(0)
    config = replace(
        TINY, backbone="ast_micro", patch_freq=patch[0], patch_time=patch[1], freq_stride=patch[0], time_stride=patch[1]
    )
    model = AST(config, *size, 7)
    fbank_BTM, weights_BPE = torch.randn(3, size[1], size[0]), torch.randn(3, model.grid[0] * model.grid[1], 96)
    own_BPE = model._embed_patches(fbank_BTM)
    expected_BPE = model.patch_proj(fbank_BTM.transpose(1, 2).unsqueeze(1)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(own_BPE, expected_BPE, atol=1e-5, rtol=1e-6)  # sums of up to 1024 products near 1
    parameters = (model.patch_proj.weight, model.patch_proj.bias)
    own, expected = (torch.autograd.grad((out * weights_BPE).mean(), parameters) for out in (own_BPE, expected_BPE))
    for mine, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_imagenet_file_sums_rgb_and_cuts_the_grid(tmp_path):
    import timm  # noqa: PLC0415  # seconds, in each process that collects the tests

    source = timm.create_model(TINY.backbone, pretrained=False)
    weights = source.state_dict()
    weights["pos_embed"] = torch.randn_like(weights["pos_embed"])
    save_file(weights, tmp_path / "deit.safetensors")
    model = AST(TINY, 128, 128, 5)
    initialise(model, replace(TINY, init=str(tmp_path / "deit.safetensors")))
    torch.testing.assert_close(model.patch_proj.weight, weights["patch_embed.proj.weight"].sum(1, keepdim=True))
    assert torch.equal(model.pos_embed[:, :2], weights["pos_embed"][:, :2])
    assert torch.equal(model.blocks[3].attn.qkv.weight, weights["blocks.3.attn.qkv.weight"])
    grid = weights["pos_embed"][0, 2:].reshape(14, 14, -1)
    own = model.pos_embed[0, 2:].reshape(*model.grid, -1)
    assert model.grid == (12, 12)
    assert torch.equal(own, grid[1:13, 1:13])  # 14 // 2 - 12 // 2 = 1


def test_positions_stretch_bilinearly_where_the_grid_is_larger():
    source = torch.randn(1, 2 + 14 * 14, 6)
    wide = adapt_positions(source, (14, 14), (12, 101), 2)
    cut = source[:, 2:].reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
    stretched = torch.nn.functional.interpolate(cut, (14, 101), mode="bilinear", align_corners=False)
    torch.testing.assert_close(wide[:, 2:].reshape(1, 12, 101, 6).permute(0, 3, 1, 2), stretched[:, :, 1:13])


def published(model):
    """Return a state with the published names and the two unused ImageNet heads."""
    names = {"head_norm": "mlp_head.0", "head": "mlp_head.1"}
    table = {"module.v.head.weight": torch.zeros(1000, 192), "module.v.head_dist.weight": torch.zeros(1000, 192)}
    for key, value in model.state_dict().items():
        first, _, rest = key.partition(".")
        table[
            "module."
            + (f"{names[first]}.{rest}" if first in names else f"v.{key.replace('patch_proj', 'patch_embed.proj')}")
        ] = value
    return table


def test_published_checkpoint_gives_the_same_logits_and_adapts(tmp_path):
    torch.manual_seed(0)
    trained = AST(TINY, 128, 1024, 9)
    path = tmp_path / "audioset.pth"
    torch.save(published(trained), path)
    again = AST(TINY, 128, 1024, 9)
    initialise(again, replace(TINY, init=str(path)))
    fbank = torch.randn(1, 1024, 128)
    assert torch.equal(trained.eval()(fbank), again.eval()(fbank))
    other = AST(replace(TINY, time_stride=16, freq_stride=16), 128, 512, 4)
    initialise(other, replace(TINY, time_stride=16, freq_stride=16, init=str(path)))
    assert torch.equal(other.blocks[0].mlp.fc1.weight, trained.blocks[0].mlp.fc1.weight)


def test_unfit_and_hostile_weights_are_refused_with_the_reason(tmp_path):
    model = AST(TINY, 128, 128, 5)
    small = AST(replace(TINY, backbone="ast_micro"), 128, 128, 5)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(UserError, match=r"does not fit the model. other shapes"):
        initialise(model, replace(TINY, init=str(tmp_path / "small.safetensors")))
    weights = model.state_dict()
    weights["norm.weight"] = weights["norm.weight"] * float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"not finite: norm\.weight"):
        initialise(model, replace(TINY, init=str(tmp_path / "nan.safetensors")))
    torch.save({"weight": print}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="was refused"):
        initialise(model, replace(TINY, init=str(tmp_path / "code.pth")))
