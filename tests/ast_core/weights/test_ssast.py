"""Pre-training checkpoints of SSAST, made here with the names and shapes of the published code, as initial weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ast_core.config import ModelConfig
from ast_core.errors import UserError
from ast_core.model.transformer import AST
from ast_core.weights import pretrained
from ast_core.weights.pretrained import initialise

PATCHES = ModelConfig(
    backbone="ast_micro", patch_freq=16, patch_time=16, freq_stride=16, time_stride=16, init="scratch"
)
FRAMES = replace(PATCHES, patch_freq=128, patch_time=2, freq_stride=128, time_stride=2)
WIDTH = 96


def pretraining(config: ModelConfig, bins: int, frames: int, prefix: str = "module.") -> dict[str, Any]:
    """Return what SSAST saves after a pre-training of this architecture."""
    torch.manual_seed(0)
    model = AST(config, bins, frames, 3)
    torch.nn.init.normal_(model.pos_embed)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("head")}
    table = {f"v.{key}".replace("patch_proj", "patch_embed.proj"): value for key, value in state.items()}
    table |= {"v.head.weight": torch.zeros(1000, WIDTH), "v.head_dist.bias": torch.zeros(1000)}
    table |= {"p_input_fdim": torch.tensor(bins), "p_input_tdim": torch.tensor(frames)}
    table |= {"mask_embed": torch.zeros(1, 1, WIDTH)}
    for head in ("cpredlayer", "gpredlayer"):
        table |= {f"{head}.0.weight": torch.zeros(WIDTH, WIDTH), f"{head}.2.bias": torch.zeros(256)}
    return {prefix + key: value for key, value in table.items()}


def initialised(config: ModelConfig, bins: int, frames: int, file: Path) -> AST:
    """Return a model after its initialisation from a file."""
    model = AST(config, bins, frames, 3)
    initialise(model, replace(config, init=str(file)))
    return model


@pytest.mark.parametrize(
    ("config", "bins", "frames"),
    [(PATCHES, 128, 1024), (PATCHES, 128, 512), (PATCHES, 64, 96), (FRAMES, 128, 1024), (FRAMES, 128, 96)],
)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_every_weight_of_a_pretraining_is_loaded(
    tmp_path: Path, config: ModelConfig, bins: int, frames: int, prefix: str
) -> None:
    table = pretraining(config, bins, frames, prefix)
    torch.save(table, tmp_path / "ssast.pth")
    model = initialised(config, bins, frames, tmp_path / "ssast.pth")
    for key, value in model.state_dict().items():
        if not key.startswith("head"):
            assert torch.equal(value, table[f"{prefix}v.{key}".replace("patch_proj", "patch_embed.proj")]), key


def test_positions_of_frames_are_cut_and_stretched_along_time_only(tmp_path: Path) -> None:
    table = pretraining(FRAMES, 128, 1024)
    torch.save(table, tmp_path / "ssast.pth")
    short = initialised(FRAMES, 128, 256, tmp_path / "ssast.pth")
    assert torch.equal(short.pos_embed[0, 2:], table["module.v.pos_embed"][0, 2 + 192 : 2 + 192 + 128])
    overlapping = replace(FRAMES, time_stride=1)
    assert initialised(overlapping, 128, 1024, tmp_path / "ssast.pth").grid == (1, 1023)


def test_ignored_names_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pretraining(PATCHES, 128, 96) | {"module.p_t_dim": 6, "module.cpredlayer.1.num_batches_tracked": 7}
    torch.save(table, tmp_path / "ssast.pth")
    with caplog.at_level(logging.INFO, "ast_core"):
        initialised(PATCHES, 128, 96, tmp_path / "ssast.pth")
    assert (
        "ignored: cpredlayer (3 tensors), gpredlayer (2 tensors), mask_embed, p_input_fdim, p_input_tdim, p_t_dim."
        in caplog.text
    )


def test_safetensors_of_a_pretraining_are_loaded(tmp_path: Path) -> None:
    save_file(pretraining(PATCHES, 128, 96), tmp_path / "ssast.safetensors")
    initialised(PATCHES, 128, 96, tmp_path / "ssast.safetensors")


def test_fine_tuned_frames_have_one_row_of_patches(tmp_path: Path) -> None:
    table = {key: value for key, value in pretraining(FRAMES, 128, 100).items() if ".v." in key}
    torch.save(table, tmp_path / "fine_tuned.pth")
    assert torch.equal(
        initialised(FRAMES, 128, 100, tmp_path / "fine_tuned.pth").pos_embed, table["module.v.pos_embed"]
    )


def test_a_model_of_one_prefix_token_keeps_its_grid() -> None:
    weights = {"v.pos_embed": torch.zeros(1, 513, 2), "v.patch_embed.proj.weight": torch.zeros(2, 1, 16, 16)}
    assert pretrained._published_grid(weights, {}, "FILE") == (8, 64)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"module.v.unknown": torch.zeros(2)}, "unknown: unknown"),
        ({"module.decoder.weight": torch.zeros(2)}, r"unknown: decoder\.weight"),
        ({"module.steps": torch.tensor(3)}, r"not plain floating-point tensors: module\.steps"),
        ({"module.p_input_tdim": torch.tensor(-16)}, "p_input_tdim is not one whole number"),
        ({"module.p_input_tdim": torch.tensor(1 << 40)}, "p_input_tdim is not one whole number"),
        ({"module.p_input_fdim": torch.tensor([128, 128])}, "p_input_fdim is not one whole number"),
        ({"module.p_input_fdim": torch.tensor(8)}, r"are 8 and 96, smaller than its patches of 16 x 16"),
        ({"module.v.norm.weight": torch.full((WIDTH,), torch.nan)}, r"not finite: norm\.weight"),
    ],
)
def test_other_tensors_and_wrong_sizes_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    torch.save(pretraining(PATCHES, 128, 96) | changes, tmp_path / "ssast.pth")
    with pytest.raises(UserError, match=reason):
        initialised(PATCHES, 128, 96, tmp_path / "ssast.pth")


def test_weights_of_other_patches_are_refused_with_the_flags_that_fit(tmp_path: Path) -> None:
    torch.save(pretraining(FRAMES, 128, 96), tmp_path / "ssast.pth")
    with pytest.raises(UserError, match=r"set --model.patch-freq 128 --model.patch-time 2"):
        initialised(PATCHES, 128, 96, tmp_path / "ssast.pth")
