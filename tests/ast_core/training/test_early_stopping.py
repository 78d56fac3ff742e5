"""A training ends after epochs without a better validation score, is finished then, and goes on with more patience."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prepared import FRONT_END, write_shards
from safetensors.torch import load_file

from ast_core.config import AugmentConfig, DataConfig, Job, ModelConfig, OptimConfig
from ast_core.errors import UserError
from ast_core.training import trainer
from ast_core.training.early_stopping import describe_early_stop, find_last_epoch, shorten_run
from ast_core.training.trainer import fit, is_finished
from ast_core.weights import checkpoint

CPU = torch.device("cpu")
CURVE = [0.5, 0.7, 0.6, 0.7, 0.65, 0.9]


def rows(scores: list[float], key: str = "validation_accuracy") -> list[dict[str, float]]:
    return [{"epoch": epoch, key: score} for epoch, score in enumerate(scores, start=1)]


def optim(patience: int, frozen: int = 0, epochs: int = 10) -> OptimConfig:
    return OptimConfig(
        epochs=epochs, early_stopping_epochs=patience, freeze_backbone_epochs=frozen, average_first_epoch=8
    )


@pytest.mark.parametrize(
    ("patience", "frozen", "last"),
    [
        (0, 0, 10),  # off
        (1, 0, 3),
        (2, 0, 4),  # an equal score is not better
        (4, 0, 10),  # epoch 6 comes in time
        (2, 3, 5),  # the backbone trains for two epochs first
        (2, -1, 4),  # it never trains
    ],
)
def test_last_epoch_follows_epochs_without_a_better_score(patience: int, frozen: int, last: int) -> None:
    settings = optim(patience, frozen)
    assert find_last_epoch(settings, rows(CURVE)) == last
    assert find_last_epoch(settings, rows(CURVE, "validation_mAP")) == last
    for known in range(last):  # the training asks after each epoch, and `combine` after the last
        assert find_last_epoch(settings, rows(CURVE[:known])) == 10


def test_score_that_is_not_a_number_is_never_better() -> None:
    assert find_last_epoch(optim(2), rows([0.5, math.nan, math.nan])) == 3
    assert find_last_epoch(optim(2), rows([math.nan] * 2)) == 2
    assert find_last_epoch(optim(2), rows([math.nan, 0.5, 0.6])) == 10


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(1, 4), st.integers(-1, 4))
def test_later_epochs_never_change_where_a_run_stopped(scores: list[float], patience: int, frozen: int) -> None:
    settings = optim(patience, frozen, epochs=12)
    last = find_last_epoch(settings, rows(scores))
    assert last >= min(12, patience + max(0, frozen))
    if last < 12:
        assert find_last_epoch(settings, rows(scores[:last])) == last
        before, after = scores[: last - patience], scores[last - patience : last]
        assert max(after) <= max(before)
        assert find_last_epoch(dataclasses.replace(settings, early_stopping_epochs=patience + 1), rows(scores)) > last


def test_stopped_run_averages_as_many_epochs_as_planned() -> None:
    stopped = shorten_run(optim(2, 3), rows(CURVE))
    assert (stopped.epochs, stopped.average_first_epoch) == (5, 3)
    stopped = shorten_run(optim(1), rows([0.5, 0.4]))
    assert (stopped.epochs, stopped.average_first_epoch) == (2, 1)
    assert shorten_run(optim(0), rows(CURVE)) == optim(0)


def test_sentence_names_last_and_best_epoch() -> None:
    assert describe_early_stop(optim(2), rows(CURVE)) == (
        "Stopped early after epoch 4 of 10: no validation score of the last 2 epochs is better than that of epoch 2, "
        "0.7000."
    )
    assert describe_early_stop(optim(4), rows(CURVE)) == ""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    shards = write_shards(tmp_path / "shards", {"train": 24, "validation": 9, "test": 3})
    model = ModelConfig(
        backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch"
    )
    settings = OptimConfig(
        epochs=5, batch_size=6, learning_rate=1e-3, warmup_steps=3, loss="cross_entropy", sampler="shuffle",
        early_stopping_epochs=1, checkpoint_every_steps=3,
    )  # fmt: skip
    return Job(
        folder=tmp_path / "member", shards=shards, seed=0, data=DataConfig(validation_split="validation"),
        front_end=FRONT_END, model=model, augment=AugmentConfig(freq_mask_bins=4, time_mask_frames=8), optim=settings,
    )  # fmt: skip


def set_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Replace the score of each epoch that is evaluated next."""
    following, evaluate = iter(scores), trainer.metrics.evaluate_scores
    monkeypatch.setattr(
        trainer.metrics, "evaluate_scores", lambda *given: evaluate(*given) | {"accuracy": next(following)}
    )


def test_stopped_training_is_finished_and_more_patience_continues_it_with_the_same_bits(job: Job, monkeypatch) -> None:
    set_scores(monkeypatch, [0.5, 0.4, 0.3, 0.6, 0.7])
    fit(job, 0, 1, CPU)
    assert is_finished(job)
    fit(job, 0, 1, CPU)  # does nothing
    assert sorted(checkpoint.epoch_folders(job.folder / "epochs")) == [1, 2]
    patient = dataclasses.replace(job, optim=dataclasses.replace(job.optim, early_stopping_epochs=3))
    assert not is_finished(patient)
    fit(patient, 0, 1, CPU)
    assert is_finished(patient)
    assert is_finished(job)  # its second epoch is still the last that counts
    curve = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["validation_accuracy"] for row in curve] == [0.5, 0.4, 0.3, 0.6, 0.7]
    monkeypatch.undo()
    whole = dataclasses.replace(
        job, folder=job.folder.with_name("whole"), optim=dataclasses.replace(job.optim, early_stopping_epochs=0)
    )
    fit(whole, 0, 1, CPU)
    for epoch in (2, 5):
        one, other = (
            load_file(folder / "epochs" / f"epoch-{epoch:04d}" / "model.safetensors")
            for folder in (job.folder, whole.folder)
        )
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_early_stopping_without_a_validation_split_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match=r"optim\.early-stopping-epochs is 1 and data\.validation-split is empty"):
        fit(dataclasses.replace(job, data=DataConfig()), 0, 1, CPU)
