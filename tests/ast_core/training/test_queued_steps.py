"""Steps that are queued before the host has read the numbers of the step before them, as on a GPU, run on a CPU."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_trainings import job_in, move_to, result_of, train
from prepared import write_shards
from torch.utils._python_dispatch import TorchDispatchMode

from ast_core.config import Job
from ast_core.errors import Preempted, UserError
from ast_core.shards.reader import ShardReader
from ast_core.training import trainer
from ast_core.training.batches import iterate_batches
from ast_core.training.callback import StepResult, TrainerCallback
from ast_core.training.optimizer_step import QueuedStep, finish_step, optimizer_step, queue_step
from ast_core.training.order import epoch_order
from ast_core.training.state import State, initial_state
from ast_core.training.trainer import fit
from ast_core.weights import checkpoint

CPU = torch.device("cpu")
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::item"}
"""Operators that would make the host wait for a GPU."""


@pytest.fixture
def ahead(monkeypatch) -> None:
    """Let the host queue one step ahead on the CPU, too."""
    monkeypatch.setitem(trainer.STEPS_AHEAD, "cpu", 1)


def train_ahead(rank: int) -> None:
    """Do the same in a forked rank."""
    trainer.STEPS_AHEAD["cpu"] = 1


def job_with_broken_clip(folder: Path, value: float, **optim: Any) -> tuple[Job, int]:
    """Return a training without mixup whose shards hold one clip that is not finite, and the clip's step."""
    job = job_in(folder, **optim)
    job = dataclasses.replace(job, augment=dataclasses.replace(job.augment, mixup_rate=0.0))
    write_shards(job.shards, {"train": 24, "test": 7}, broken=("train-5",), value=value)
    clips = epoch_order(job.optim.sampler, ShardReader(job.shards, ["train"]).labels_NC, job.seed, 1)
    return job, clips.tolist().index(5) // job.optim.batch_size + 1


class _Recorder(TrainerCallback):
    """Callback that records the steps, and asks for a stop after a number of questions."""

    def __init__(self, stop_at: int = 0) -> None:
        self.steps: list[int] = []
        self._questions, self._stop_at = 0, stop_at

    def on_step_end(self, done: StepResult) -> None:
        self.steps.append(done.step)

    def should_stop(self) -> bool:
        self._questions += 1
        return self._questions == self._stop_at


def weights_of(state: State) -> list[torch.Tensor]:
    return [value.clone() for value in state.model.parameters()]


def same_bits(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_steps_queued_ahead_end_with_the_same_bits_also_after_a_stop(tmp_path: Path, ahead) -> None:
    job = job_in(tmp_path, ema_decay=0.9, clip_norm=0.5)
    stopped = move_to(job, "stopped")
    fit(job, 0, 1, CPU)
    first, second = _Recorder(stop_at=4), _Recorder()
    with pytest.raises(Preempted, match="stopped at step 3"):
        fit(stopped, 0, 1, CPU, first)
    fit(stopped, 0, 1, CPU, second)
    assert first.steps + second.steps == list(range(1, 9))
    trainer.STEPS_AHEAD["cpu"] = 0
    fit(move_to(job, "at-once"), 0, 1, CPU)
    results = [result_of(move_to(job, name)) for name in ("member", "stopped", "at-once")]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_blocks_the_next_update_and_is_named_one_step_later(
    tmp_path: Path, monkeypatch, ahead, value: float
) -> None:
    job, step = job_with_broken_clip(tmp_path, value, checkpoint_every_steps=1000)
    states, before = [], {}
    real_initial, real_queue = trainer.initial_state, trainer.queue_step

    def initial(*arguments: Any) -> State:
        states.append(real_initial(*arguments))
        return states[0]

    def queue(state: State, *arguments: Any) -> QueuedStep:
        before[state.progress.step + 1] = weights_of(state)
        return real_queue(state, *arguments)

    monkeypatch.setattr(trainer, "initial_state", initial)
    monkeypatch.setattr(trainer, "queue_step", queue)
    recorder = _Recorder()
    with pytest.raises(UserError, match=rf"Step {step} of member is not finite on rank 0 \(loss .* clips .*train-5"):
        fit(job, 0, 1, CPU, recorder)
    assert recorder.steps == list(range(1, step))
    assert max(before) == min(step + 1, 4)  # one more step was queued, unless it was the epoch's last
    assert same_bits(weights_of(states[0]), before[step])
    assert checkpoint.newest(job.folder / "checkpoints") == (None, [])


def test_rank_0_commits_nothing_if_it_is_asked_to_stop_while_a_queued_step_is_not_finite(tmp_path: Path, ahead) -> None:
    job, step = job_with_broken_clip(tmp_path, math.nan, checkpoint_every_steps=1000)
    if step == 4:
        pytest.skip("the epoch ends with the clip's step")
    with pytest.raises(UserError, match=rf"Step {step} of member is not finite"):
        fit(job, 0, 1, CPU, _Recorder(stop_at=step + 1))
    assert checkpoint.newest(job.folder / "checkpoints") == (None, [])


def test_checkpoint_of_a_step_that_is_not_finite_is_never_committed(tmp_path: Path, ahead) -> None:
    job, step = job_with_broken_clip(tmp_path, math.nan, checkpoint_every_steps=1)
    with pytest.raises(UserError, match=rf"Step {step} of member is not finite"):
        fit(job, 0, 1, CPU)
    newest, _ = checkpoint.newest(job.folder / "checkpoints")
    assert (newest.name if newest else "") == (f"step-{step - 1:08d}" if step > 1 else "")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_ranks_that_queue_ahead_stop_together_and_name_the_rank(tmp_path: Path) -> None:
    job, step = job_with_broken_clip(tmp_path, math.nan, checkpoint_every_steps=1000)
    training = train(job, 2, train_ahead)
    assert [rank.exitcode for rank in training.ranks] == [1, 1]
    first, second = training.errors()
    assert first == second
    assert first.startswith(f"UserError: Step {step} of member is not finite on rank ")
    assert first.count("on rank") == 1
    assert "train-5" in first
    assert training.steps() == list(range(1, step))


class _CountReads(TorchDispatchMode):
    """Mode that records the operators that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        self.seen += [name] if name in READS else []
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_queueing_a_step_reads_no_number_from_the_device(tmp_path: Path, precision: Any) -> None:
    job = job_in(tmp_path, precision=precision, clip_norm=0.5, ema_decay=0.9, accumulate=2)
    reader = ShardReader(job.shards, ["train"])
    state, batches = initial_state(job, reader, CPU, 1), iterate_batches(job, reader, 1, 0, 1, 0)
    optimizer_step(state, job, next(batches), reader, 1, -6.0, 4.0)  # creates the optimizer's state
    batch = next(batches)
    with _CountReads() as reads:
        queue_step(state, job, batch, 1, -6.0, 4.0)
    assert reads.seen == []
    with _CountReads() as reads:
        float(torch.ones(()))
    assert reads.seen == ["aten::_local_scalar_dense"]


def test_fp16_overflow_skips_one_update_and_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    job = job_in(tmp_path, precision="fp16")
    reader = ShardReader(job.shards, ["train"])
    state, batches = initial_state(job, reader, CPU, 1), iterate_batches(job, reader, 1, 0, 1, 0)
    optimizer_step(state, job, next(batches), reader, 1, -6.0, 4.0)
    scale, before = state.scaler.get_scale(), weights_of(state)
    hook = state.model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    optimizer_step(state, job, next(batches), reader, 1, -6.0, 4.0)
    hook.remove()
    assert state.scaler.get_scale() == scale / 2
    assert same_bits(weights_of(state), before)
    optimizer_step(state, job, next(batches), reader, 1, -6.0, 4.0)
    assert not same_bits(weights_of(state), before)
    before = weights_of(state)
    batch = next(batches)
    batch.fbank_BTM[0] = math.nan
    queued = queue_step(state, job, batch, 1, -6.0, 4.0)
    assert same_bits(weights_of(state), before)
    with pytest.raises(UserError, match="Step 4 of member is not finite on rank 0"):
        finish_step(state, job, queued, reader)
