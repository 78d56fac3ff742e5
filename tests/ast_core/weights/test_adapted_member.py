"""A member at another length: the weights that a training from its bundle begins with, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.errors import UserError
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights.adapted_member import adapt_member
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.ensemble_mean import Member
from ast_core.weights.pretrained import initialise

LABELS = ["dog", "rain"]
FRONT_END = FrontEndConfig(target_frames=96, num_mel_bins=36)
MODEL = ModelConfig(backbone="ast_micro", init="scratch")


def make_member(folder: Path, config: ModelConfig = MODEL) -> Member:
    """Write the bundle of a member with random weights, and return the member."""
    torch.manual_seed(0)
    model = AST(config, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(LABELS))
    identity = {"labels": LABELS, "model": to_dict(config), "front_end": to_dict(FRONT_END), "loss": "bce"}
    write_bundle(folder, [("a", model.state_dict(), {**identity, "mean": -5.0, "std": 4.0})], False)
    return Bundle.load(folder).members[0]


@pytest.mark.parametrize("frames", [16, 50, 95, 200])
@pytest.mark.parametrize("positions", ["bilinear", "nearest"])
def test_weights_are_those_that_a_training_from_the_bundle_begins_with(
    tmp_path: Path, frames: int, positions: str
) -> None:
    member = make_member(tmp_path, replace(MODEL, positions=positions))  # type: ignore[arg-type]
    config = replace(member.config, init=str(tmp_path))
    trained = AST(config, FRONT_END.num_mel_bins, frames, len(LABELS)).eval()
    initialise(trained, config, LABELS)
    adapted = adapt_member(member, frames)
    assert adapted.front_end == replace(FRONT_END, target_frames=frames)
    assert (adapted.config, adapted.mean, adapted.std, adapted.model.training) == (member.config, -5.0, 4.0, False)
    weights = adapted.model.state_dict()
    assert weights.keys() == trained.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in trained.state_dict().items())
    fbank_BTM = torch.randn(2, frames, FRONT_END.num_mel_bins)
    with torch.inference_mode():
        assert torch.equal(adapted.model(fbank_BTM), trained(fbank_BTM))


def test_the_own_length_changes_nothing_and_new_positions_are_interpolated(tmp_path: Path) -> None:
    member = make_member(tmp_path / "a")
    before = {name: value.clone() for name, value in member.model.state_dict().items()}
    assert adapt_member(member, 96) is member
    anew = make_member(tmp_path / "b", replace(MODEL, positions="reinitialised"))
    assert torch.equal(adapt_member(anew, 200).model.pos_embed, adapt_member(member, 200).model.pos_embed)
    assert all(torch.equal(value, before[name]) for name, value in member.model.state_dict().items())


@pytest.mark.parametrize("frames", [-1, 0, 15, 100_001])
def test_a_length_that_no_training_takes_is_refused(tmp_path: Path, frames: int) -> None:
    member = make_member(tmp_path)
    with pytest.raises(UserError, match=rf"^target-frames is {frames}, .* 16 frames wide; give 16 to 100000\.$"):
        adapt_member(member, frames)
