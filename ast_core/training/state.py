"""All that changes while a member trains: how it begins, is put into checkpoints, and comes back from them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from ast_core.config import Job
from ast_core.errors import require
from ast_core.model.transformer import AST
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import remove_temporary_files
from ast_core.storage.json_files import sha256_of_json, write_text
from ast_core.weights import checkpoint
from ast_core.weights.pretrained import initialise, load_exactly

LOG = logging.getLogger(__name__)
KEPT_CHECKPOINTS = 2
"""The newest, and the one before it in case the newest is found damaged."""


@dataclass
class Progress:
    """What a checkpoint remembers besides tensors."""

    step: int = 0
    """Optimiser steps done."""
    loss_sum: float = 0.0
    """Sum of this epoch's losses so far, each the mean over all ranks: whoever commits it commits the whole sum."""
    history: list[dict[str, float]] | None = None
    """A row of metrics an epoch."""


@dataclass
class State:
    """Everything that changes while training, on one rank."""

    model: AST
    replica: nn.Module
    """The model, or its distributed wrapper."""
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    progress: Progress
    device: torch.device
    moving: dict[str, torch.Tensor]
    """Exponential moving average of the weights; empty where the recipe has none."""


def initial_state(job: Job, train: ShardReader, device: torch.device, world: int) -> State:
    """A model with its initial weights, an optimiser, and nothing learned.

    Raises:
        UserError: no clip to train on, or the initial weights cannot be had or do not fit.
    """
    torch.manual_seed(job.seed)
    require(len(train) > 0, f"The splits {', '.join(job.data.train_splits)} in {job.shards} hold no clip to train on.")
    model = AST(job.model, job.front_end.num_mel_bins, job.front_end.target_frames, len(train.index.labels))
    initialise(model, job.model, train.index.labels)
    model.to(device)
    optim = job.optim
    model.recompute = optim.activation_checkpointing
    if optim.compile:
        for block in model.blocks:
            block.compile()
    moving = {name: value.clone() for name, value in model.state_dict().items()} if optim.ema_decay else {}
    optimizer = torch.optim.Adam(
        model.parameters(), lr=optim.learning_rate, betas=(0.95, 0.999), weight_decay=optim.weight_decay, fused=True
    )
    replica = (
        DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None) if world > 1 else model
    )
    scaler = GradScaler(device.type, enabled=optim.precision == "fp16")
    return State(model, replica, optimizer, scaler, Progress(history=[]), device, moving)


def resume_state(state: State, job: Job, identity: dict[str, Any], rank: int, world: int) -> None:
    """Put the newest verified checkpoint into `state`; every rank takes the one that rank 0 chose.

    Raises:
        UserError: it is of a run with other settings or data, or not finite.
    """
    chosen: list[Any] = [None]
    if rank == 0:
        path, passed_over = checkpoint.newest(job.folder / "checkpoints")
        for sentence in passed_over:
            LOG.warning("%s The one before it is used.", sentence)
        chosen = [path]
    if world > 1:
        distributed.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return
    stored = checkpoint.read_state(chosen[0])
    require_same_run(stored["identity"], identity, job)
    load_exactly(state.model, checkpoint.read_tensors(chosen[0], "model"), str(chosen[0]))
    if state.moving:
        stored_average = checkpoint.read_tensors(chosen[0], "ema")
        state.moving = {name: value.to(state.device) for name, value in stored_average.items()}
    checkpoint.restore_optimizer(state.optimizer, checkpoint.read_tensors(chosen[0], "optimizer"))
    if stored["scaler"]:
        state.scaler.load_state_dict(stored["scaler"])
    state.progress = Progress(**stored["progress"])
    bad = not_finite(state)
    require(not bad, f"Checkpoint {chosen[0]} is no beginning: {named(bad or [''])}. Remove its folder, run again.")
    if rank == 0:
        _write_history(state, job)
        LOG.info("Resumed at step %d from %s.", state.progress.step, chosen[0])


def require_same_run(stored: dict[str, Any], identity: dict[str, Any], job: Job) -> None:
    """UserError with what differs, unless a checkpoint is of the run that `identity` says.

    Other data is let through only where it was asked for, and has as many clips: a run's place in it is its step.
    """
    clips = stored["run"].get("train_clips"), identity["run"]["train_clips"]
    if job.accept_other_data and clips[0] == clips[1]:
        stored = {**stored, "run": {**stored["run"], "data_hash": identity["run"]["data_hash"]}}
    changed = [
        f"{part}.{key}" for part in identity for key in {**stored[part], **identity[part]}
        if sha256_of_json(stored[part].get(key)) != sha256_of_json(identity[part].get(key))
    ]  # fmt: skip
    same_clips = changed == ["run.data_hash"]
    require(
        not changed,
        f"{job.folder} holds a run with other settings or data ({', '.join(changed)} differ). "
        "Choose another --run-dir, or remove that folder to start again."
        + (" As many training clips, but changed ones, are taken with --accept-other-data." if same_clips else ""),
    )


def finish_epoch(
    state: State, job: Job, identity: dict[str, Any], row: dict[str, float], epoch: int, rank: int
) -> None:
    """Commit the epoch's weights for averaging, then a checkpoint to resume from, then the curve."""
    state.progress.loss_sum = 0.0
    state.progress.history = [*(state.progress.history or []), row]
    if rank == 0:
        folder = job.folder / "epochs" / f"epoch-{epoch:04d}"
        tables = {"model": state.model.state_dict()} | ({"ema": state.moving} if state.moving else {})
        checkpoint.save(folder, tables, {"identity": identity["member"], "row": row})
        save(state, job, identity)
        _write_history(state, job)


def save(state: State, job: Job, identity: dict[str, Any]) -> None:
    """Commit a checkpoint to resume from, and remove those that it makes needless."""
    folder = job.folder / "checkpoints"
    progress = state.progress
    values = {"identity": identity, "progress": vars(progress), "scaler": state.scaler.state_dict()}
    checkpoint.save(folder / f"step-{progress.step:08d}", _tables(state), values)
    checkpoint.remove_older(folder, KEPT_CHECKPOINTS)


def _tables(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors that a run goes on from."""
    tables = {"model": state.model.state_dict(), "optimizer": checkpoint.optimizer_tensors(state.optimizer)}
    return tables | ({"ema": state.moving} if state.moving else {})


def not_finite(state: State) -> list[str]:
    """The tensors, as TABLE.NAME, that hold NaN or infinity."""
    flat = {f"{table}.{name}": value for table, own in _tables(state).items() for name, value in own.items()}
    if torch.isfinite(nn.utils.get_total_norm(flat.values(), torch.inf)):  # the largest: no sum that could overflow
        return []
    return [name for name, value in flat.items() if not value.isfinite().all()]


def named(bad: list[str]) -> str:
    """Such tensors, in a sentence."""
    return f"{bad[0]} is not finite" if len(bad) == 1 else f"{bad[0]} and {len(bad) - 1} more are not finite"


def require_finite(state: State, job: Job, rank: int) -> None:
    """UserError if a step left what must not be committed: Adam's update can overflow where the gradient did not.

    Every rank looks before a save that all know of, so that all of them stop.
    """
    bad = not_finite(state)
    require(
        not bad,
        f"After step {state.progress.step} of {job.folder.name}, {named(bad or [''])} on rank {rank}. It is not kept: "
        "the newest checkpoint is good. Lower optim.learning-rate, or raise optim.warmup-steps.",
    )


def _write_history(state: State, job: Job) -> None:
    remove_temporary_files(job.folder, "metrics.jsonl")
    write_text(job.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in state.progress.history or []))
