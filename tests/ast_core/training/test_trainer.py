"""Training in one process: it learns, repeats to the bit, resumes to the bit, and stops where it must."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from prepared import FRONT_END, write_shards
from safetensors.torch import load_file

from ast_core.config import AugmentConfig, DataConfig, Job, ModelConfig, OptimConfig, Precision
from ast_core.errors import Preempted, UserError
from ast_core.shards.reader import ShardReader
from ast_core.training.batches import iterate_batches
from ast_core.training.callback import StepResult, TrainerCallback
from ast_core.training.optimizer_step import _accumulate_gradient
from ast_core.training.state import initial_state
from ast_core.training.trainer import fit
from ast_core.weights import checkpoint

EPOCHS = 3
CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    model = ModelConfig(
        backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch"
    )
    optim = OptimConfig(
        epochs=EPOCHS, batch_size=6, learning_rate=1e-3, warmup_steps=3, loss="cross_entropy", sampler="shuffle",
        checkpoint_every_steps=2, weights="last",
    )  # fmt: skip
    return Job(
        folder=tmp_path / "member", shards=tmp_path / "shards", seed=0, data=DataConfig(mean=None, std=None),
        front_end=FRONT_END, model=model, augment=AugmentConfig(freq_mask_bins=4, time_mask_frames=8), optim=optim,
    )  # fmt: skip


def weights_of(folder: Path, epoch: int = EPOCHS) -> dict[str, torch.Tensor]:
    return load_file(folder / "epochs" / f"epoch-{epoch:04d}" / "model.safetensors")


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_learns_what_is_plain_and_writes_its_curve(job: Job) -> None:
    fit(job, 0, 1, CPU)
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [7, 14, 21]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["test_accuracy"] > 0.9  # a third by chance
    assert sorted(checkpoint.epoch_folders(job.folder / "epochs")) == [1, 2, 3]


def test_a_run_repeats_to_the_bit_and_another_seed_differs(job: Job) -> None:
    fit(job, 0, 1, CPU)
    again = dataclasses.replace(job, folder=job.folder.with_name("again"))
    fit(again, 0, 1, CPU)
    other = dataclasses.replace(job, folder=job.folder.with_name("other"), seed=1)
    fit(other, 0, 1, CPU)
    assert_same_bits(weights_of(job.folder), weights_of(again.folder))
    assert not torch.equal(weights_of(job.folder)["head.weight"], weights_of(other.folder)["head.weight"])


@pytest.mark.parametrize("from_step", [2, 7, 12])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(job: Job, from_step: int, monkeypatch) -> None:
    # Every checkpoint is kept; then all after one are removed, as if that one had been the last before a kill.
    monkeypatch.setattr("ast_core.training.state.KEPT_CHECKPOINTS", 100)
    fit(job, 0, 1, CPU)
    whole = weights_of(job.folder)
    later = [
        path for path in (job.folder / "checkpoints").iterdir() if int(path.name.removeprefix("step-")) > from_step
    ]
    assert (job.folder / "checkpoints" / f"step-{from_step:08d}").is_dir()
    for folder in later:
        (folder / checkpoint.MARKER).unlink()
    (job.folder / "epochs" / f"epoch-{EPOCHS:04d}" / "model.safetensors").unlink()
    fit(job, 0, 1, CPU)
    assert_same_bits(whole, weights_of(job.folder))
    assert len((job.folder / "metrics.jsonl").read_text().splitlines()) == EPOCHS


class _Asked(TrainerCallback):
    """Asks the training to leave when it asks for the nth time, and writes down what it is told."""

    def __init__(self, nth: int) -> None:
        self.steps: list[int] = []
        self.last_word = -1
        self._nth = nth

    def on_step_end(self, done: StepResult) -> None:
        self.steps.append(done.step)

    def should_stop(self) -> bool:
        self._nth -= 1
        return self._nth == 0

    def on_stopped(self, step: int) -> None:
        self.last_word = step


@pytest.mark.parametrize("nth", [1, 4, 8])  # an epoch asks before each of its 7 steps, and while it is tested
def test_a_training_that_is_asked_to_leave_loses_no_step_and_no_bit(job: Job, nth: int) -> None:
    straight = dataclasses.replace(job, folder=job.folder.with_name("straight"))
    fit(straight, 0, 1, CPU)
    before, after = _Asked(nth), _Asked(0)
    with pytest.raises(Preempted):
        fit(job, 0, 1, CPU, before)
    newest, _ = checkpoint.newest(job.folder / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-{before.last_word:08d}"
    assert before.last_word == len(before.steps)
    fit(job, 0, 1, CPU, after)
    assert before.steps + after.steps == list(range(1, 7 * EPOCHS + 1))
    assert_same_bits(weights_of(straight.folder), weights_of(job.folder))
    curves = [(one.folder / "metrics.jsonl").read_text().splitlines() for one in (straight, job)]
    kept = [[{key: json.loads(row)[key] for key in ("epoch", "step", "train_loss")} for row in rows] for rows in curves]
    assert kept[0] == kept[1]


def test_more_epochs_continue_a_run(job: Job) -> None:
    fit(dataclasses.replace(job, optim=dataclasses.replace(job.optim, epochs=1)), 0, 1, CPU)
    fit(job, 0, 1, CPU)
    straight = dataclasses.replace(job, folder=job.folder.with_name("straight"))
    fit(straight, 0, 1, CPU)
    assert_same_bits(weights_of(straight.folder), weights_of(job.folder))


def test_other_settings_in_the_same_folder_are_refused_by_name(job: Job) -> None:
    fit(job, 0, 1, CPU)
    changed = dataclasses.replace(job, optim=dataclasses.replace(job.optim, learning_rate=2e-3))
    with pytest.raises(UserError, match=r"run\.optim differ"):
        fit(changed, 0, 1, CPU)
    with pytest.raises(UserError, match=r"run\.seed differ"):
        fit(dataclasses.replace(job, seed=5), 0, 1, CPU)


def test_shards_of_another_front_end_are_refused(job: Job) -> None:
    other = dataclasses.replace(job.front_end, window="hamming")
    with pytest.raises(UserError, match="window hanning, not hamming"):
        fit(dataclasses.replace(job, front_end=other), 0, 1, CPU)


def test_a_batch_that_workers_cannot_share_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match="cannot be shared by 4 workers"):
        fit(job, 0, 4, CPU)


def gradient(job: Job) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of the first step, before any update."""
    train = ShardReader(job.shards, ["train"])
    state = initial_state(job, train, CPU, 1)
    batch = next(iterate_batches(job, train, 1, 0, 1, 0))
    loss = _accumulate_gradient(state, job, batch, batch.fbank_BTM.float() / 8)
    return loss, {name: value.grad for name, value in state.model.named_parameters() if value.grad is not None}


def test_a_batch_in_parts_and_activations_computed_again_give_the_same_gradient(job: Job) -> None:
    optim = dataclasses.replace(job.optim, accumulate=4, activation_checkpointing=True)  # parts of 2, 2, 2 and none
    loss, whole = gradient(job)
    loss_in_parts, parts = gradient(dataclasses.replace(job, optim=optim))
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)
    for name, value in parts.items():
        torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-4)
    fit(dataclasses.replace(job, optim=optim), 0, 1, CPU)
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] > 0.9


def test_patchout_clipping_moving_average_and_bf16_train_and_resume_to_the_bit(job: Job, monkeypatch) -> None:
    monkeypatch.setattr("ast_core.training.state.KEPT_CHECKPOINTS", 100)
    optim = dataclasses.replace(job.optim, clip_norm=0.5, ema_decay=0.9, weights="ema", precision="bf16")
    augment = dataclasses.replace(job.augment, patchout_time=1, patchout_any=1)
    own = dataclasses.replace(job, optim=optim, augment=augment)
    fit(own, 0, 1, CPU)
    average = load_file(own.folder / "epochs" / f"epoch-{EPOCHS:04d}" / "ema.safetensors")
    whole = weights_of(own.folder)
    assert not torch.equal(average["head.weight"], whole["head.weight"])
    for folder in (own.folder / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 9:
            (folder / checkpoint.MARKER).unlink()
    fit(own, 0, 1, CPU)
    assert_same_bits(whole, weights_of(own.folder))
    assert_same_bits(average, load_file(own.folder / "epochs" / f"epoch-{EPOCHS:04d}" / "ema.safetensors"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_well(job: Job, precision: Precision) -> None:
    half = dataclasses.replace(job, optim=dataclasses.replace(job.optim, precision=precision))
    fit(half, 0, 1, CPU)
    rows = [json.loads(line) for line in (half.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] > 0.9
    assert all(value.dtype == torch.float32 for value in weights_of(half.folder).values())


@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile builds C++ where there is no GPU: needs g++")
def test_compiled_blocks_give_the_same_gradient_under_the_same_names(job: Job) -> None:
    _, whole = gradient(job)
    _, compiled = gradient(dataclasses.replace(job, optim=dataclasses.replace(job.optim, compile=True)))
    assert whole.keys() == compiled.keys()
    for name, value in compiled.items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-3)
