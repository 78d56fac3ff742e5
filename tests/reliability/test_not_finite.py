"""R14: NaN or infinity on one rank of two stops both before the update, and is named; checkpoints stay finite."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_trainings import Training, job_in, train
from prepared import write_shards
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules import module as every_module
from torch.optim import optimizer as every_optimizer

from ast_core.config import Job
from ast_core.errors import UserError
from ast_core.model.transformer import AST
from ast_core.shards.reader import ShardReader
from ast_core.training.callback import StepResult, TrainerCallback
from ast_core.training.order import epoch_order, rank_steps
from ast_core.training.trainer import fit
from ast_core.weights import checkpoint

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FAULT_STEP = 3
"""Step at which a fault happens; the checkpoint before it is that of step 2."""


class _StepCounter(TrainerCallback):
    """Callback that knows the current step, and creates the file `happened` when a fault happens."""

    def __init__(self, happened: Path) -> None:
        self.current, self._happened = 1, happened

    def on_step_end(self, done: StepResult) -> None:
        self.current = done.step + 1

    def is_fault_step(self) -> bool:
        if self.current == FAULT_STEP:
            self._happened.touch()
        return self.current == FAULT_STEP


def break_gradient(rank: int, happened: Path, value: float) -> TrainerCallback | None:
    """Multiply a layer's gradient by `value` on rank 1, in the backward pass of one step."""
    counter = _StepCounter(happened)

    def after_backward(layer: nn.Module, into: Any, _: Any) -> Any:
        hit = isinstance(layer, nn.Linear) and into[0] is not None and counter.is_fault_step()
        return (into[0] * value, *into[1:]) if hit else None

    if rank == 1:
        every_module.register_module_full_backward_hook(after_backward)
    return counter


def break_weight(rank: int, happened: Path, value: float) -> TrainerCallback | None:
    """Set a weight to `value` on rank 1, before one step, as if its memory had failed."""
    counter = _StepCounter(happened)

    def before_forward(layer: nn.Module, _: Any) -> None:
        if isinstance(layer, AST) and counter.is_fault_step():
            layer.head.weight.data[0, 0] = value

    if rank == 1:
        every_module.register_module_forward_pre_hook(before_forward)
    return counter


def break_update(rank: int, happened: Path, value: float) -> TrainerCallback | None:
    """Set a weight to `value` on both ranks, after the last update of the epoch, as the same gradient would."""
    counter = _StepCounter(happened)

    def after_update(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if counter.current == 4:
            happened.touch()
            optimizer.param_groups[0]["params"][0].data.view(-1)[0] = value

    every_optimizer.register_optimizer_step_post_hook(after_update)
    return counter


def assert_stopped(training: Training, finite_step: int) -> str:
    """Check that all ranks ended with an error and that the newest checkpoint is finite; return rank 0's error."""
    assert [rank.exitcode for rank in training.ranks] == [1] * len(training.ranks)
    newest, passed_over = checkpoint.newest(training.job.folder / "checkpoints")
    assert not passed_over
    assert (newest.name if newest else "") == (f"step-{finite_step:08d}" if finite_step else "")
    for table in ("model", "optimizer") if newest else ():
        assert all(value.isfinite().all() for value in checkpoint.read_tensors(newest, table).values())
    return training.errors()[0]


def first_use(job: Job, clip: int, world: int) -> set[tuple[int, int]]:
    """Return the steps (counted from 1) and ranks (from 0) of the first epoch that read a clip."""
    reader = ShardReader(job.shards, ["train"])
    chosen = epoch_order(job.optim.sampler, reader.labels_NC, job.seed, 1)
    return {
        (number, rank)
        for rank in range(world)
        for number, positions in enumerate(rank_steps(len(reader), job.optim.batch_size, rank, world), 1)
        if clip in chosen[positions % len(chosen)]
    }


@pytest.mark.timeout(180)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_clip_that_is_not_finite_stops_both_ranks_and_is_named(tmp_path: Path, value: float, measured) -> None:
    job = job_in(tmp_path, checkpoint_every_steps=1)
    unmixed = dataclasses.replace(job, augment=dataclasses.replace(job.augment, mixup_rate=0.0))
    write_shards(job.shards, {"train": 24, "test": 7}, broken=("train-5",), value=value)
    assert not np.isfinite(ShardReader(job.shards, ["train"]).read(np.array([5]))).any()
    ((step, rank),) = first_use(unmixed, 5, 2)
    training = train(unmixed, 2)
    error = assert_stopped(training, step - 1)
    assert error.startswith(f"UserError: Step {step} of member is not finite on rank {rank} (loss ")
    assert "train-5" in error.split("with clips")[1]
    assert error.count("on rank") == 1
    assert training.errors() == [error] * 2
    assert training.steps(1) == list(range(1, step))
    measured("R14", value=value, where="a shard", step=step, rank=rank)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("fault", "what"), [(break_gradient, "gradient norm "), (break_weight, "model.head.weight is not finite")]
)
def test_fault_on_one_rank_stops_both_ranks_and_names_that_rank(
    tmp_path: Path, fault, value: float, what: str, measured
) -> None:
    job = job_in(tmp_path)
    happened = tmp_path / "happened"
    training = train(job, 2, functools.partial(fault, happened=happened, value=value))
    assert happened.exists()
    error = assert_stopped(training, 2)
    assert training.errors() == [error] * 2
    assert error.startswith(f"UserError: Step {FAULT_STEP} of member is not finite on rank 1 (")
    assert error.count("on rank") == 1
    assert what in error
    assert "with clips train-" in error
    measured("R14", value=value, where=fault.__name__.removeprefix("break_"), step=FAULT_STEP, rank=1)


@pytest.mark.timeout(180)
def test_update_that_is_not_finite_is_never_committed(tmp_path: Path, measured) -> None:
    job, happened = job_in(tmp_path), tmp_path / "happened"
    training = train(job, 2, functools.partial(break_update, happened=happened, value=math.inf))
    assert happened.exists()
    assert assert_stopped(training, 2).startswith("UserError: After step 4 of member, model.")
    assert [error[error.index("on rank") :][:9] for error in training.errors()] == ["on rank 0", "on rank 1"]
    assert not list(job.folder.glob("epochs/*"))
    measured("R14", value=math.inf, where="an update", step=4)


def test_learning_rate_that_overflows_weights_stops_and_commits_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path, checkpoint_every_steps=1, learning_rate=1e39, warmup_steps=1)
    with pytest.raises(UserError, match=r"not finite.*optim.learning-rate"):
        fit(job, 0, 1, CPU)
    assert checkpoint.newest(job.folder / "checkpoints") == (None, [])


def test_weights_that_are_not_finite_are_refused_at_start_and_at_resume(tmp_path: Path) -> None:
    job = job_in(tmp_path, epochs=1)
    fit(job, 0, 1, CPU)
    weights = load_file(job.folder / "epochs" / "epoch-0001" / "model.safetensors")
    weights["head_norm.weight"][3] = math.nan
    own = tmp_path / "own.safetensors"
    save_file(weights, own)
    start = dataclasses.replace(job, folder=tmp_path / "other", model=dataclasses.replace(job.model, init=str(own)))
    with pytest.raises(UserError, match=r"own.safetensors .*not finite: head_norm.weight"):
        fit(start, 0, 1, CPU)
    newest = max((job.folder / "checkpoints").iterdir())
    optimizer = checkpoint.read_tensors(newest, "optimizer")
    checkpoint.save(newest, {"model": weights, "optimizer": optimizer}, checkpoint.read_state(newest))
    with pytest.raises(UserError, match=r"step-00000004 .*not finite: head_norm.weight"):
        fit(job, 0, 1, CPU)


@pytest.mark.timeout(180)
def test_held_out_clip_that_is_not_finite_is_named_by_both_ranks(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    write_shards(job.shards, {"train": 24, "test": 7}, broken=("test-3",))
    training = train(job, 2)
    error = assert_stopped(training, 2)
    assert training.errors() == [error] * 2
    assert "not finite on rank 1 for the held-out clips test-3 (1 of 7)" in error
