"""Logits from the same file of weights, against the published model's steps, written with timm's modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ast_core.config import ModelConfig
from ast_core.errors import UserError
from ast_core.model.transformer import AST
from ast_core.weights.positions import adapt_positions
from ast_core.weights.pretrained import initialise

pytestmark = pytest.mark.slow

TINY = ModelConfig(backbone="deit_tiny_distilled_patch16_224", init="scratch")
CLASSES = 527


def create_model(name: str, **values: int) -> nn.Module:
    """Return a model of timm without weights from the network."""
    import timm  # noqa: PLC0415  # seconds, in each process that collects the tests

    model: nn.Module = timm.create_model(name, pretrained=False, **values)
    return model


class Published(nn.Module):
    """Published model's steps around timm's distilled DeiT: strided one-channel projection, mean of two tokens."""

    def __init__(self, freq: int, time: int, stride: int = 10) -> None:
        super().__init__()
        self.v = create_model(TINY.backbone, num_classes=1000)
        width = self.v.embed_dim
        self.v.patch_embed.proj = nn.Conv2d(1, width, 16, stride=stride)
        patches = ((freq - 16) // stride + 1) * ((time - 16) // stride + 1)
        self.v.pos_embed = nn.Parameter(torch.zeros(1, patches + 2, width))
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))

    def forward(self, fbank_BTM: torch.Tensor) -> torch.Tensor:
        """Convert log-mel [B, T, M] to logits [B, C]."""
        image_B1MT = fbank_BTM[:, None].transpose(2, 3)
        patches_BPE = self.v.patch_embed.proj(image_B1MT).flatten(2).transpose(1, 2)
        prefix = [token.expand(len(fbank_BTM), -1, -1) for token in (self.v.cls_token, self.v.dist_token)]
        tokens_BPE = torch.cat([*prefix, patches_BPE], dim=1) + self.v.pos_embed
        tokens_BPE = self.v.norm(self.v.blocks(tokens_BPE))
        logits_BC: torch.Tensor = self.mlp_head((tokens_BPE[:, 0] + tokens_BPE[:, 1]) / 2)
        return logits_BC


def add_noise(model: nn.Module) -> nn.Module:
    """Make weights as large as trained ones, so that every part of the model matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(("stride", "frames"), [(10, 1024), (12, 1024), (14, 1024), (16, 1024), (10, 512), (10, 128)])
def test_logits_from_a_published_file_equal_those_of_the_published_model(
    tmp_path: Path, stride: int, frames: int
) -> None:
    theirs = add_noise(Published(128, frames, stride))
    torch.save({f"module.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "audioset.pth")
    config = replace(TINY, freq_stride=stride, time_stride=stride, init=str(tmp_path / "audioset.pth"))
    ours = AST(config, 128, frames, CLASSES).eval()
    initialise(ours, config)
    fbank_BTM = torch.randn(2, frames, 128) / 2
    with torch.no_grad():
        torch.testing.assert_close(ours(fbank_BTM), theirs(fbank_BTM), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [12, 16])
@pytest.mark.parametrize("frames", [128, 512, 1400])
def test_published_file_adapts_to_any_stride_and_length(tmp_path: Path, stride: int, frames: int) -> None:
    theirs = add_noise(Published(128, 1024))
    torch.save(theirs.state_dict(), tmp_path / "audioset.pth")
    config = replace(TINY, freq_stride=stride, time_stride=stride, init=str(tmp_path / "audioset.pth"))
    ours = AST(config, 128, frames, 50)
    initialise(ours, config)
    expected = adapt_positions(theirs.v.pos_embed, (12, 101), ours.grid, 2)
    assert torch.equal(ours.pos_embed, expected)
    assert torch.equal(ours.blocks[11].mlp.fc2.weight, theirs.v.blocks[11].mlp.fc2.weight)


def test_the_published_cut_is_about_the_centre(tmp_path: Path) -> None:
    theirs = add_noise(Published(128, 1024))
    torch.save(theirs.state_dict(), tmp_path / "audioset.pth")
    config = replace(TINY, init=str(tmp_path / "audioset.pth"))
    ours = AST(config, 128, 512, CLASSES)
    initialise(ours, config)
    grid = theirs.v.pos_embed[0, 2:].reshape(12, 101, -1)
    assert torch.equal(ours.pos_embed[0, 2:].reshape(12, 50, -1), grid[:, 25:75])  # 101 // 2 - 50 // 2


@pytest.mark.parametrize(
    "name",
    # The two base models have the same layers; each is as large as 15 tiny ones.
    [TINY.backbone, pytest.param("deit_base_patch16_224", marks=pytest.mark.long), "vit_base_patch16_224"],
)
def test_imagenet_file_returns_the_features_of_timm_for_a_grey_picture(tmp_path: Path, name: str) -> None:
    theirs = add_noise(create_model(name))
    save_file(theirs.state_dict(), tmp_path / "imagenet.safetensors")
    config = ModelConfig(backbone=name, freq_stride=16, time_stride=16, init=str(tmp_path / "imagenet.safetensors"))
    ours = AST(config, 224, 224, 3).eval()
    initialise(ours, config)
    grey_BTM = torch.randn(1, 224, 224) / 2
    with torch.no_grad():
        tokens_BPE, _ = ours.tokens(grey_BTM, None, None)
        for block in ours.blocks:
            tokens_BPE = block(tokens_BPE)
        picture_BCHW = grey_BTM.transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
        torch.testing.assert_close(ours.norm(tokens_BPE), theirs.forward_features(picture_BCHW), atol=1e-4, rtol=1e-5)


def test_mean_projection_and_nearest_or_random_positions_are_as_in_the_paper(tmp_path: Path) -> None:
    source = create_model(TINY.backbone)
    nn.init.normal_(source.pos_embed)
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    config = replace(TINY, init=str(tmp_path / "imagenet.pth"), projection="mean", positions="nearest")
    model = AST(config, 128, 1024, 3)
    initialise(model, config)
    torch.testing.assert_close(model.patch_proj.weight, source.patch_embed.proj.weight.mean(1, keepdim=True))
    row = source.pos_embed[0, 2:].reshape(14, 14, -1)[1]
    own = model.pos_embed[0, 2:].reshape(*model.grid, -1)[0]
    assert torch.equal(own, row[(torch.arange(101) * 14) // 101])
    anew = replace(config, positions="reinitialised")
    model = AST(anew, 128, 1024, 3)
    before = model.pos_embed.clone()
    initialise(model, anew)
    assert torch.equal(model.pos_embed, before)
    assert abs(float(before.detach().std()) - 0.02) < 1e-3


def test_backbone_of_another_family_is_refused_with_the_missing_tensor(tmp_path: Path) -> None:
    save_file(create_model("deit_tiny_patch16_224").state_dict(), tmp_path / "plain.safetensors")
    config = replace(TINY, init=str(tmp_path / "plain.safetensors"))
    with pytest.raises(UserError, match=r"missing: dist_token"):
        initialise(AST(config, 128, 128, 3), config)
