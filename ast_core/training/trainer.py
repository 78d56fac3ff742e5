"""Training of one member: resume, epochs of steps, evaluation, checkpoints. One process a rank; knows no Ray.

What a run is, is an integer: the step. Order, augmentation and rate follow from (seed, epoch, step), so a resumed run
ends with the bits of an uninterrupted one on as many ranks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed

from ast_core.config import Job
from ast_core.errors import Preempted, require
from ast_core.evaluation import metrics
from ast_core.model.loss import probabilities
from ast_core.shards.reader import ShardReader
from ast_core.training import order
from ast_core.training.batches import iterate_batches
from ast_core.training.callback import StepResult, TrainerCallback
from ast_core.training.optimizer_step import optimizer_step
from ast_core.training.run_identity import member_identity, normalisation, run_identity
from ast_core.training.schedule import learning_rate
from ast_core.training.state import (
    State,
    finish_epoch,
    initial_state,
    require_finite,
    require_same_run,
    resume_state,
    save,
)
from ast_core.training.targets import soft_targets
from ast_core.weights import checkpoint

MOST_NAMED = 12
"""Clips that one sentence names."""


@dataclass(frozen=True)
class _Task:
    """What does not change while a rank trains."""

    job: Job
    train: ShardReader
    held_out: ShardReader
    identity: dict[str, Any]
    mean: float
    std: float
    rank: int
    world: int
    callback: TrainerCallback

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return order.steps_per_epoch(len(self.train), self.job.optim.batch_size)


def fit(job: Job, rank: int, world: int, device: torch.device, callback: TrainerCallback | None = None) -> None:
    """Train to the last epoch, from the newest verified checkpoint if there is one.

    Args:
        job: what to train.
        rank: of this process.
        world: processes; `torch.distributed` is set up if there is more than one.
        device: of this process.
        callback: told of steps and checkpoints; rank 0's may ask the training to leave.

    Raises:
        UserError: the run folder holds another run, the data does not fit, or the loss is not finite.
        Preempted: the callback asked to leave; a checkpoint has all steps.
    """
    require(
        job.optim.batch_size % world == 0,
        f"optim.batch-size {job.optim.batch_size} cannot be shared by {world} workers; choose a multiple of {world}.",
    )
    train = ShardReader(job.shards, job.data.train_splits)
    held_out = ShardReader(job.shards, [job.data.validation_split or job.data.test_split])
    train.targets_NC = soft_targets(job, train)
    mean, std = normalisation(job, train)
    task = _Task(job, train, held_out, _identity(job, train), mean, std, rank, world, callback or TrainerCallback())
    state = initial_state(job, train, device, world)
    resume_state(state, job, task.identity, rank, world)
    task.callback.on_train_begin(state.progress.step)
    while (epoch := len(state.progress.history or []) + 1) <= job.optim.epochs:
        started, first = time.monotonic(), state.progress.step
        _train_epoch(state, task, epoch)
        seconds = time.monotonic() - started
        row = _epoch_row(state, task, epoch)
        row |= {"seconds": seconds, "clips_per_s": (state.progress.step - first) * job.optim.batch_size / seconds}
        _finish(state, task, row, epoch)
    if world > 1:
        distributed.barrier()


def _train_epoch(state: State, task: _Task, epoch: int) -> None:
    """The epoch's steps that are not done yet; none are left where a training left while it was tested."""
    job, ended = task.job, time.monotonic()
    first = state.progress.step - (epoch - 1) * task.steps
    for batch in iterate_batches(job, task.train, epoch, task.rank, task.world, first):
        _leave_if_asked(state, task)
        read = time.monotonic()
        loss = optimizer_step(state, job, batch, task.train, epoch, task.mean, task.std)
        done, rate, now = state.progress.step, state.optimizer.param_groups[0]["lr"], time.monotonic()
        task.callback.on_step_end(
            StepResult(done, epoch, loss, rate, len(batch.clip_indices), now - ended, read - ended)
        )
        ended = now
        if done % job.optim.checkpoint_every_steps == 0 and done % task.steps:
            _commit(state, task)
    require_finite(state, job, task.rank)


def _commit(state: State, task: _Task) -> None:
    require_finite(state, task.job, task.rank)
    if task.rank == 0:
        started = time.monotonic()
        save(state, task.job, task.identity)
        task.callback.on_checkpoint_saved(state.progress.step, time.monotonic() - started)


def _finish(state: State, task: _Task, row: dict[str, float], epoch: int) -> None:
    started = time.monotonic()
    finish_epoch(state, task.job, task.identity, row, epoch, task.rank)
    if task.rank == 0:
        task.callback.on_checkpoint_saved(state.progress.step, time.monotonic() - started)


def _leave_if_asked(state: State, task: _Task) -> None:
    """Every rank holds the same weights: rank 0 commits without a word to the others, which cannot step without it."""
    if task.rank == 0 and task.callback.should_stop():
        _commit(state, task)
        task.callback.on_stopped(state.progress.step)
        raise Preempted(f"{task.job.folder.name} left at step {state.progress.step}; its checkpoint is there.")


def is_finished(job: Job) -> bool:
    """Whether a member is trained: its newest checkpoint is the last step's, and epochs and curve are there.

    Raises:
        UserError: the run folder holds another run, or the data does not fit.
    """
    newest, _ = checkpoint.newest(job.folder / "checkpoints")
    if newest is None or not (job.folder / "metrics.jsonl").is_file():
        return False
    train = ShardReader(job.shards, job.data.train_splits)
    stored = checkpoint.read_state(newest)
    require_same_run(stored["identity"], _identity(job, train), job)
    last = order.steps_per_epoch(len(train), job.optim.batch_size) * job.optim.epochs
    progress, epochs = stored["progress"], checkpoint.epoch_folders(job.folder / "epochs")
    tested = progress["step"] >= last and len(progress["history"]) >= job.optim.epochs
    return tested and set(range(1, job.optim.epochs + 1)) <= set(epochs)


def _identity(job: Job, train: ShardReader) -> dict[str, Any]:
    return {"member": member_identity(job, train, *normalisation(job, train)), "run": run_identity(job, train)}


def _score(state: State, task: _Task, indices: np.ndarray) -> np.ndarray:
    """Probabilities of held-out clips, float32 [len(indices), C]."""
    model, device, reader = state.model, state.device, task.held_out
    model.eval()
    rows = [np.zeros((0, len(reader.index.labels)), np.float32)]
    with torch.inference_mode():
        for first in range(0, len(indices), 32):
            _leave_if_asked(state, task)
            chosen = indices[first : first + 32]
            fbank_BTM = torch.from_numpy(reader.read(chosen)).to(device).float()
            num_frames_B = torch.from_numpy(reader.num_frames_N[chosen]).to(device)
            logits_BC = model((fbank_BTM - task.mean) / (2 * task.std), num_frames_B)
            rows.append(probabilities(task.job.optim.loss, logits_BC).cpu().numpy())
    model.train()
    return np.concatenate(rows)


def _require_finite_scores(scores_NC: np.ndarray, task: _Task) -> None:
    """UserError that names held-out clips of which the model makes no number, and the ranks that tested them."""
    bad = np.flatnonzero(~np.isfinite(scores_NC).all(axis=1)).tolist()
    ranks = sorted({clip % task.world for clip in bad})
    require(
        not bad,
        f"Scores of {task.job.folder.name} are not finite on rank {', '.join(map(str, ranks))} for the held-out clips "
        f"{', '.join(task.held_out.clip_ids[clip] for clip in bad[:MOST_NAMED])} ({len(bad)} of {len(scores_NC)}). "
        "Prepare their split again.",
    )


def _epoch_row(state: State, task: _Task, epoch: int) -> dict[str, float]:
    """The epoch's metrics: losses and rate, and scores on the held-out split, each of its clips seen once."""
    job, held_out, world = task.job, task.held_out, task.world
    share = order.evaluation_share(len(held_out), task.rank, world)
    scores = _score(state, task, share)
    gathered: list[Any] = [(share, scores)]
    if world > 1:
        gathered = [None] * world
        distributed.all_gather_object(gathered, (share, scores))
    all_NC = np.full((len(held_out), scores.shape[1]), np.nan, np.float32)
    for indices, values in gathered:
        all_NC[indices] = values
    _require_finite_scores(all_NC, task)
    name = "validation" if job.data.validation_split else "test"
    result = metrics.evaluate_scores(all_NC, held_out.labels_NC, held_out.index.single_label)
    row = {
        "epoch": epoch,
        "step": state.progress.step,
        "learning_rate": learning_rate(job.optim, epoch, state.progress.step - 1),
        "train_loss": state.progress.loss_sum / task.steps,
    }
    return row | {f"{name}_{key}": value for key, value in result.items() if not key.startswith("chance")}
