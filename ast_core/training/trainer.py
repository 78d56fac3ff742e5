"""Training of one member: resume, epochs of steps, evaluation, checkpoints.

Each rank is one process, and nothing here knows Ray. The position of a run is one integer, the step: order,
augmentation and learning rate follow from (seed, epoch, step). A resumed run therefore ends with the same bits as an
uninterrupted run on the same number of ranks.
"""

from __future__ import annotations

import logging
import time
from collections import deque
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
from ast_core.training.batches import Batch, iterate_batches
from ast_core.training.callback import StepResult, TrainerCallback
from ast_core.training.early_stopping import describe_early_stop, find_last_epoch
from ast_core.training.job_rules import require_consistent
from ast_core.training.member_folder import MemberFolder
from ast_core.training.optimizer_step import QueuedStep, finish_step, queue_step
from ast_core.training.run_identity import RunIdentity, build_identity
from ast_core.training.schedule import learning_rate
from ast_core.training.state import (
    Progress,
    State,
    choose_checkpoint,
    enter_epoch,
    finish_epoch,
    initial_state,
    require_finite,
    require_same_run,
    resume_state,
    save,
)
from ast_core.training.targets import soft_targets
from ast_core.weights import checkpoint

LOG = logging.getLogger(__name__)
MOST_NAMED = 12
"""Largest number of clips that one error names."""
CLIPS_AT_ONCE = 32
"""Held-out clips that are scored in one batch."""
STEPS_AHEAD = {"cpu": 0, "cuda": 1}
"""Steps that the host queues before it reads the numbers of an earlier step. A CPU computes while it queues."""


@dataclass(frozen=True)
class _Task:
    """Everything that does not change while a rank trains."""

    job: Job
    train: ShardReader
    held_out: ShardReader
    identity: RunIdentity
    mean: float
    std: float
    rank: int
    world: int
    callback: TrainerCallback

    @property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        return order.steps_per_epoch(len(self.train), self.job.optim.batch_size)


def fit(job: Job, rank: int, world: int, device: torch.device, callback: TrainerCallback | None = None) -> None:
    """Train to the last epoch, from the newest verified checkpoint if there is one, or until it stops early.

    Args:
        job: the training.
        rank: number of this process.
        world: number of processes; `torch.distributed` must be initialised if there is more than one.
        device: device of this process.
        callback: object that steps and checkpoints are reported to; rank 0's may ask the training to stop.

    Raises:
        UserError: the run folder holds another run, the data does not fit, or the loss is not finite.
        Preempted: the callback asked to stop; a checkpoint holds all steps.
    """
    require(
        job.optim.batch_size % world == 0,
        f"optim.batch-size {job.optim.batch_size} cannot be split over {world} workers; choose a multiple of {world}.",
    )
    require_consistent(job.data, job.model, job.optim)
    train = ShardReader(job.shards, job.data.train_splits)
    _require_labels(job, train)
    held_out = ShardReader(job.shards, [job.data.validation_split or job.data.test_split])
    train.targets = soft_targets(job, train)
    newest = choose_checkpoint(job, rank, world)
    identity = build_identity(job, train, newest)
    mean, std = identity.member.mean, identity.member.std
    task = _Task(job, train, held_out, identity, mean, std, rank, world, callback or TrainerCallback())
    state = initial_state(job, train, device, world)
    if newest is not None:
        resume_state(state, job, identity, newest, rank)
    task.callback.on_train_begin(state.progress.step)
    while (epoch := len(history := state.progress.history or []) + 1) <= find_last_epoch(job.optim, history):
        enter_epoch(state, job, epoch)
        started, first = time.monotonic(), state.progress.step
        _train_epoch(state, task, epoch)
        seconds = time.monotonic() - started
        row = _evaluate_epoch(state, task, epoch)
        row |= {"seconds": seconds, "clips_per_s": (state.progress.step - first) * job.optim.batch_size / seconds}
        _commit_epoch(state, task, row, epoch)
    if rank == 0 and (stopped := describe_early_stop(job.optim, history)):
        LOG.info("%s", stopped)
    if world > 1:
        distributed.barrier()


def _require_labels(job: Job, train: ShardReader) -> None:
    """Raise UserError if a training clip has no label and the loss needs one."""
    if job.optim.loss == "bce":
        return
    bare = np.flatnonzero(train.labels.count_N == 0)
    require(
        not len(bare),
        f"{len(bare)} training clips have no label, for example {train.clip_ids[bare[0]] if len(bare) else ''}. "
        f"optim.loss {job.optim.loss} needs one for each clip: use optim.loss bce, or label these clips.",
    )


class _StepQueue:
    """Steps of an epoch that are queued on the device, oldest first, and reported once the host has read them."""

    def __init__(self, state: State, task: _Task, epoch: int) -> None:
        self._state, self._task, self._epoch = state, task, epoch
        self._queued: deque[tuple[QueuedStep, float]] = deque()
        self._ended = time.monotonic()

    def add(self, batch: Batch, asked: float) -> None:
        """Queue the step of a batch that the rank waited for since `asked`; finish the steps too far behind it."""
        task, waiting_s = self._task, time.monotonic() - asked
        queued = queue_step(self._state, task.job, batch, self._epoch, task.mean, task.std)
        self._queued.append((queued, waiting_s))
        self.finish(leave=STEPS_AHEAD[self._state.device.type])

    def finish(self, leave: int = 0) -> None:
        """Finish and report the oldest steps until `leave` remain.

        Raises:
            UserError: a step is not finite. All ranks raise it, because all finish their steps at the same places.
        """
        task = self._task
        while len(self._queued) > leave:
            queued, waiting_s = self._queued.popleft()
            loss = finish_step(self._state, task.job, queued, task.train)
            now, clips = time.monotonic(), len(queued.batch.clip_indices)
            task.callback.on_step_end(
                StepResult(queued.step, self._epoch, loss, queued.learning_rate, clips, now - self._ended, waiting_s)
            )
            self._ended = now

    def is_faulty(self) -> bool:
        """Return whether a queued step is not finite; unlike `finish`, one rank may ask alone."""
        return any(queued.read()[2] for queued, _ in self._queued)


def _train_epoch(state: State, task: _Task, epoch: int) -> None:
    """Do the steps of the epoch that are not done yet.

    No step remains if the training stopped while it scored the held-out clips at the epoch's end.
    """
    job, steps, asked = task.job, _StepQueue(state, task, epoch), time.monotonic()
    first = state.progress.step - (epoch - 1) * task.steps
    for batch in iterate_batches(job, task.train, epoch, task.rank, task.world, first, state.device):
        _stop_if_asked(state, task, steps)
        steps.add(batch, asked)
        done = state.progress.step
        if done % job.optim.checkpoint_every_steps == 0 and done % task.steps:
            steps.finish()
            _commit(state, task)
        asked = time.monotonic()
    steps.finish()
    require_finite(state, job, task.rank)


def _commit(state: State, task: _Task) -> None:
    """Save a checkpoint in the middle of an epoch."""
    require_finite(state, task.job, task.rank)
    if task.rank == 0:
        started = time.monotonic()
        save(state, task.job, task.identity)
        task.callback.on_checkpoint_saved(state.progress.step, time.monotonic() - started)


def _commit_epoch(state: State, task: _Task, row: dict[str, float], epoch: int) -> None:
    """Save the epoch's weights, checkpoint and row of metrics."""
    started = time.monotonic()
    finish_epoch(state, task.job, task.identity, row, epoch, task.rank)
    if task.rank == 0:
        task.callback.on_checkpoint_saved(state.progress.step, time.monotonic() - started)


def _stop_if_asked(state: State, task: _Task, steps: _StepQueue | None = None) -> None:
    """Commit a checkpoint and raise `Preempted` if rank 0's callback asks for it.

    All ranks hold the same weights, so rank 0 commits without telling the others; they cannot step without it. If a
    queued step is not finite, rank 0 goes on instead: all ranks find the cause together after the next step.
    """
    if task.rank == 0 and task.callback.should_stop() and not (steps and steps.is_faulty()):
        if steps:
            steps.finish()
        _commit(state, task)
        task.callback.on_stopped(state.progress.step)
        raise Preempted(f"{task.job.folder.name} stopped at step {state.progress.step}, after saving a checkpoint.")


def is_finished(job: Job) -> bool:
    """Return whether a member is completely trained.

    Its newest checkpoint must be that of the last step, and all epochs and `metrics.jsonl` must exist. A training that
    stopped early is complete.

    Raises:
        UserError: the run folder holds another run, or the data does not fit.
    """
    member = MemberFolder(job.folder)
    newest, _ = checkpoint.read_newest(member.checkpoints)
    if newest is None or not member.history.is_file():
        return False
    train = ShardReader(job.shards, job.data.train_splits)
    require_same_run(newest.state["identity"], build_identity(job, train, newest), job)
    progress, epochs = Progress(**newest.state["progress"]), checkpoint.epoch_folders(member.epochs)
    history = progress.history or []
    count = find_last_epoch(job.optim, history)
    last = order.steps_per_epoch(len(train), job.optim.batch_size) * count
    evaluated = progress.step >= last and len(history) >= count
    return evaluated and set(range(1, count + 1)) <= set(epochs)


def _score_held_out(state: State, task: _Task, indices: np.ndarray) -> np.ndarray:
    """Return probabilities of the held-out clips at `indices`, float32 [len(indices), C]."""
    model, device, reader = state.model, state.device, task.held_out
    model.eval()
    rows = [np.zeros((0, len(reader.index.labels)), np.float32)]
    with torch.inference_mode():
        for first in range(0, len(indices), CLIPS_AT_ONCE):
            _stop_if_asked(state, task)
            chosen = indices[first : first + CLIPS_AT_ONCE]
            fbank_BTM = torch.from_numpy(reader.read(chosen)).to(device).float()
            num_frames_B = torch.from_numpy(reader.num_frames_N[chosen]).to(device)
            logits_BC = model((fbank_BTM - task.mean) / (2 * task.std), num_frames_B)
            rows.append(probabilities(task.job.optim.loss, logits_BC).cpu().numpy())
    model.train()
    return np.concatenate(rows)


def _require_finite_scores(scores_NC: np.ndarray, task: _Task) -> None:
    """Raise a `UserError` if a score is NaN or infinite; it names the held-out clips and the ranks that scored them."""
    bad = np.flatnonzero(~np.isfinite(scores_NC).all(axis=1)).tolist()
    ranks = sorted({clip % task.world for clip in bad})
    require(
        not bad,
        f"Scores of {task.job.folder.name} are not finite on rank {', '.join(map(str, ranks))} for the held-out clips "
        f"{', '.join(task.held_out.clip_ids[clip] for clip in bad[:MOST_NAMED])} ({len(bad)} of {len(scores_NC)}). "
        "Prepare their split again.",
    )


def _evaluate_epoch(state: State, task: _Task, epoch: int) -> dict[str, float]:
    """Return the epoch's row of metrics: step, learning rate, training loss, and the metrics on the held-out split.

    The ranks share the held-out clips, so each clip is scored once.
    """
    job, held_out, world = task.job, task.held_out, task.world
    share = order.evaluation_share(len(held_out), task.rank, world)
    scores = _score_held_out(state, task, share)
    gathered: list[Any] = [(share, scores)]
    if world > 1:
        gathered = [None] * world
        distributed.all_gather_object(gathered, (share, scores))
    all_NC = np.full((len(held_out), scores.shape[1]), np.nan, np.float32)
    for indices, values in gathered:
        all_NC[indices] = values
    _require_finite_scores(all_NC, task)
    name = "validation" if job.data.validation_split else "test"
    result = [metrics.evaluate_scores(all_NC, held_out.labels_NC, held_out.index.single_label)]
    if world > 1 and job.optim.early_stopping_epochs:
        # Nodes with other processors may round otherwise, and all ranks must stop at the same epoch.
        distributed.broadcast_object_list(result, src=0)
    row = {
        "epoch": epoch,
        "step": state.progress.step,
        "learning_rate": learning_rate(job.optim, epoch, state.progress.step - 1),
        "train_loss": state.progress.loss_sum / task.steps,
    }
    if job.optim.head_learning_rate:
        row["head_learning_rate"] = learning_rate(
            job.optim, epoch, state.progress.step - 1, job.optim.head_learning_rate
        )
    return row | {f"{name}_{key}": value for key, value in result[0].items() if not key.startswith("chance")}
