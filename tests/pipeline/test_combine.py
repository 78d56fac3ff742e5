"""Combine makes the bundle of a member as the recipe says, and refuses unfinished members."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import FRONT_END, LABELS, write_shards

from ast_core.config import EnsembleConfig, ModelConfig, OptimConfig, Weights
from ast_core.errors import UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights import checkpoint
from ast_core.weights.bundle import Bundle
from pipeline.cli.stages import CombineSettings
from pipeline.combine import combine

MODEL = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch")
OPTIM = OptimConfig(epochs=3, weights="averaged", average_first_epoch=2, loss="bce")


def write_member(run_dir: Path, seed: int, epochs: int = 3, labels: tuple[str, ...] = LABELS) -> None:
    torch.manual_seed(seed)
    identity = {
        "model": to_dict(MODEL), "front_end": to_dict(FRONT_END), "labels": list(labels), "mean": -6.0, "std": 4.0,
        "loss": "bce",
    }  # fmt: skip
    for epoch in range(1, epochs + 1):
        weights = AST(MODEL, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(labels)).state_dict()
        row = {"epoch": epoch, "validation_accuracy": 0.9 if epoch == 2 else 0.5}
        folder = run_dir / "members" / f"seed-{seed}" / "epochs" / f"epoch-{epoch:04d}"
        checkpoint.save(folder, {"model": weights}, {"identity": identity, "row": row})


@pytest.fixture
def settings(tmp_path: Path) -> CombineSettings:
    write_shards(tmp_path / "shards", {"test": 3})
    for seed in (0, 1):
        write_member(tmp_path, seed)
    ensemble = EnsembleConfig(seeds=(0, 1))
    return CombineSettings(
        run_dir=tmp_path, shards=tmp_path / "shards", experiment="test", optim=OPTIM, ensemble=ensemble
    )


def epoch_weights(run_dir: Path, seed: int, epoch: int) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(run_dir / "members" / f"seed-{seed}" / "epochs" / f"epoch-{epoch:04d}", "model")


def test_averaged_last_and_ensemble_bundles_are_written(settings: CombineSettings) -> None:
    written = combine(settings)
    assert [folder.name for folder in written] == ["seed-0-last", "seed-0", "seed-1-last", "seed-1", "ensemble"]
    own = Bundle.load(settings.run_dir / "bundles" / "seed-0").members[0].model.state_dict()
    second, third = (epoch_weights(settings.run_dir, 0, epoch) for epoch in (2, 3))
    for name, value in own.items():
        assert torch.allclose(value, (second[name].double() + third[name].double()).div(2).float(), atol=1e-7)
    last = Bundle.load(settings.run_dir / "bundles" / "seed-0-last").members[0].model.state_dict()
    assert all(torch.equal(value, third[name]) for name, value in last.items())
    fbank_BTM = np.random.default_rng(0).normal(-6, 4, (5, 32, 16)).astype(np.float32)
    scores = [
        Predictor(Bundle.load(f)).from_fbank(fbank_BTM, np.full(len(fbank_BTM), FRONT_END.target_frames))
        for f in (written[1], written[3], written[4])
    ]
    assert np.abs((scores[0] + scores[1]) / 2 - scores[2]).max() < 1e-6


def test_best_is_chosen_on_validation_only(settings: CombineSettings) -> None:
    best = dataclasses.replace(settings, optim=dataclasses.replace(OPTIM, weights="best"))
    combine(best)
    own = Bundle.load(settings.run_dir / "bundles" / "seed-0").members[0].model.state_dict()
    second = epoch_weights(settings.run_dir, 0, 2)
    assert all(torch.equal(value, second[name]) for name, value in own.items())


def test_one_seed_makes_no_ensemble_and_stale_bundles_are_removed(settings: CombineSettings) -> None:
    combine(settings)
    written = combine(dataclasses.replace(settings, ensemble=EnsembleConfig(seeds=(1,))))
    assert written[-1].name == "seed-1"
    assert sorted(path.name for path in (settings.run_dir / "bundles").glob("[!.]*")) == ["seed-1", "seed-1-last"]


def test_an_unfinished_member_is_refused_with_the_command_to_run(settings: CombineSettings) -> None:
    (settings.run_dir / "members" / "seed-1" / "epochs" / "epoch-0003" / checkpoint.MARKER).unlink()
    with pytest.raises(UserError, match=r"lacks epochs \[3\]: train --seed 1 first"):
        combine(settings)


def test_members_of_other_labels_are_refused(settings: CombineSettings) -> None:
    write_member(settings.run_dir, 1, labels=("low", "middle", "top"))
    with pytest.raises(UserError, match="Member seed-1 was trained on other labels than seed-0"):
        combine(settings)


@pytest.mark.parametrize(("weights", "made_of"), [("averaged", "mean of epochs 2 to 3"), ("last", "epoch 3")])
def test_member_that_stopped_early_is_made_of_the_epochs_that_it_has(
    settings: CombineSettings, weights: Weights, made_of: str
) -> None:
    optim = OptimConfig(epochs=9, average_first_epoch=8, weights=weights, early_stopping_epochs=1)
    epochs = EnsembleConfig(seeds=(0, 1), epochs=True)
    written = combine(dataclasses.replace(settings, optim=optim, ensemble=epochs))
    bundle = Bundle.load(settings.run_dir / "bundles" / "seed-0")
    assert bundle.facts.made_of == made_of
    epochs_used = (2, 3) if weights == "averaged" else (3,)
    heads = torch.stack([epoch_weights(settings.run_dir, 0, epoch)["head.weight"] for epoch in epochs_used])
    torch.testing.assert_close(bundle.members[0].model.state_dict()["head.weight"], heads.mean(dim=0))
    of_epochs = next(folder for folder in written if folder.name == "seed-0-epochs")
    assert len(Bundle.load(of_epochs).members) == 3


def test_member_that_has_not_stopped_yet_lacks_epochs(settings: CombineSettings) -> None:
    optim = OptimConfig(epochs=9, average_first_epoch=8, early_stopping_epochs=2)
    with pytest.raises(UserError, match=r"lacks epochs \[4, 5, 6, 7, 8, 9\]: train --seed 0 first"):
        combine(dataclasses.replace(settings, optim=optim))
