"""State of a training: its start, its checkpoints, and the resume from a checkpoint."""

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
from ast_core.model.lora import add_lora, merged_weights
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import remove_temporary_files
from ast_core.storage.json_files import sha256_of_json, write_text
from ast_core.training.member_folder import MemberFolder
from ast_core.training.run_identity import RunIdentity
from ast_core.training.trainable import group_parameters, set_trainable
from ast_core.weights import checkpoint
from ast_core.weights.checkpoint import Checkpoint
from ast_core.weights.pretrained import initialise, load_exactly

LOG = logging.getLogger(__name__)
KEPT_CHECKPOINTS = 2
"""Checkpoints that are kept: the newest, and the one before it in case the newest is damaged."""


@dataclass
class Progress:
    """Numbers that a checkpoint stores next to the tensors."""

    step: int = 0
    """Optimizer steps done."""
    loss_sum: float = 0.0
    """Sum of this epoch's losses so far. Each is the mean over all ranks, so every rank holds the complete sum."""
    history: list[dict[str, float]] | None = None
    """One row of metrics for each finished epoch."""


@dataclass
class State:
    """Everything that changes during a training, on one rank."""

    model: AST
    """The model that is trained."""
    replica: nn.Module
    """The model, or its distributed wrapper."""
    optimizer: torch.optim.Optimizer
    """Adam over the model's parameters that train in some epoch."""
    scaler: GradScaler
    """Loss scaler of fp16; disabled in other precisions."""
    progress: Progress
    """Step, sum of losses and history."""
    device: torch.device
    """Device of the model."""
    moving: dict[str, torch.Tensor]
    """Exponential moving average of the weights, LoRA merged; empty if the recipe has none."""
    faulty: torch.Tensor
    """Whether some step was not finite, bool on the device. If so, no later step changes the weights either: the host
    may notice one step later, and then looks for the cause with the weights of that step."""


def initial_state(job: Job, train: ShardReader, device: torch.device, world: int) -> State:
    """Return a model with its initial weights, a new optimizer, and no progress.

    Raises:
        UserError: the splits hold no clip, or the initial weights cannot be loaded.
    """
    torch.manual_seed(job.seed)  # the weights of a model or head that starts from scratch are drawn from it
    require(
        len(train) > 0,
        f"The splits {', '.join(job.data.train_splits)} in {job.shards} hold no clip to train on. "
        "Choose other splits with data.train-splits, or prepare the data again.",
    )
    model = AST(job.model, job.front_end.num_mel_bins, job.front_end.target_frames, len(train.index.labels))
    initialise(model, job.model, train.index.labels)
    if job.model.lora_rank:
        add_lora(model, job.model.lora_rank, job.model.lora_alpha)
    model.to(device)
    optim = job.optim
    model.recompute = optim.activation_checkpointing
    if optim.compile:
        for block in model.blocks:
            block.compile()
    moving = {name: value.clone() for name, value in merged_weights(model).items()} if optim.ema_decay else {}
    optimizer = torch.optim.Adam(
        group_parameters(model, job), betas=(0.95, 0.999), weight_decay=optim.weight_decay, fused=True
    )
    set_trainable(model, job, epoch=1)
    replica = _replicate(model, device) if world > 1 else model
    scaler = GradScaler(device.type, enabled=optim.precision == "fp16")
    faulty = torch.zeros((), dtype=torch.bool, device=device)
    return State(model, replica, optimizer, scaler, Progress(history=[]), device, moving, faulty)


def _replicate(model: AST, device: torch.device) -> nn.Module:
    """Return a wrapper that averages the gradients of the ranks, for the parameters that have gradients now."""
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def enter_epoch(state: State, job: Job, epoch: int) -> None:
    """Freeze or release the weights that an epoch trains; every rank calls it before its first step of the epoch.

    The distributed wrapper knows only parameters that had gradients when it was made, so a change makes a new one.
    """
    if not set_trainable(state.model, job, epoch):
        return
    state.optimizer.zero_grad(set_to_none=True)  # the gradients are views of the old wrapper's memory
    if isinstance(state.replica, DistributedDataParallel):
        state.replica = state.model  # removes the old wrapper first
        state.replica = _replicate(state.model, state.device)


def choose_checkpoint(job: Job, rank: int, world: int) -> Checkpoint | None:
    """Return the newest verified checkpoint, or None; every rank returns the one that rank 0 chose.

    Each rank hashes the chosen checkpoint's files once. The other ranks hash them too, because their nodes may hold
    copies of their own.

    Raises:
        DamagedError: another rank's copy of the checkpoint that rank 0 chose is damaged.
    """
    found = None
    if rank == 0:
        found, passed_over = checkpoint.read_newest(MemberFolder(job.folder).checkpoints)
        for sentence in passed_over:
            LOG.warning("%s The checkpoint before it is used.", sentence)
    if world > 1:
        chosen = [found.folder if found else None]
        distributed.broadcast_object_list(chosen, src=0)
        if rank > 0 and chosen[0] is not None:
            found = Checkpoint(chosen[0], checkpoint.read_state(chosen[0]))
    return found


def resume_state(state: State, job: Job, identity: RunIdentity, newest: Checkpoint, rank: int) -> None:
    """Load a verified checkpoint into `state`; rank 0 also writes its history to `metrics.jsonl`.

    Raises:
        UserError: the checkpoint belongs to a run with other settings or data, or holds NaN or infinity.
    """
    folder, stored = newest.folder, newest.state
    require_same_run(stored["identity"], identity, job)
    load_exactly(state.model, checkpoint.read_tensors(folder, "model"), str(folder))
    if state.moving:
        stored_average = checkpoint.read_tensors(folder, "ema")
        state.moving = {name: value.to(state.device) for name, value in stored_average.items()}
    checkpoint.restore_optimizer(state.optimizer, checkpoint.read_tensors(folder, "optimizer"))
    if stored["scaler"]:
        state.scaler.load_state_dict(stored["scaler"])
    state.progress = Progress(**stored["progress"])
    bad = find_not_finite(state)
    require(
        not bad,
        f"The training cannot resume from checkpoint {folder}: {describe_not_finite(bad or [''])}. "
        "Remove that folder and run train again: it continues from an older checkpoint, or else from the start.",
    )
    if rank == 0:
        _write_history(state, job)
        LOG.info("Resumed at step %d from %s.", state.progress.step, folder)


def require_same_run(stored: dict[str, Any], identity: RunIdentity, job: Job) -> None:
    """Raise a `UserError` with the settings that differ, unless a checkpoint belongs to the run of `identity`.

    `stored` are the checkpoint's JSON values, which another version may have written.

    Other training data is accepted only with `job.accept_other_data` and the same number of clips, because a run counts
    its position in the data in steps.
    """
    if job.accept_other_data and stored["run"].get("train_clips") == identity.run.train_clips:
        stored = {**stored, "run": {**stored["run"], "data_hash": identity.run.data_hash}}
    own = identity.to_json()
    changed = [
        f"{part}.{key}" for part in own for key in {**stored[part], **own[part]}
        if sha256_of_json(stored[part].get(key)) != sha256_of_json(own[part].get(key))
    ]  # fmt: skip
    same_clips = changed == ["run.data_hash"]
    require(
        not changed,
        f"{job.folder} holds a run with other settings or data ({', '.join(changed)} differ). "
        "Choose another --run-dir, or remove that folder to start again."
        + (
            " The number of training clips is the same: to continue with the changed clips, add --accept-other-data."
            if same_clips
            else ""
        ),
    )


def finish_epoch(state: State, job: Job, identity: RunIdentity, row: dict[str, float], epoch: int, rank: int) -> None:
    """Commit the epoch's weights for averaging, then a checkpoint to resume from, then `metrics.jsonl`."""
    state.progress.loss_sum = 0.0
    state.progress.history = [*(state.progress.history or []), row]
    if rank == 0:
        folder = MemberFolder(job.folder).epoch(epoch)
        tables = {"model": merged_weights(state.model)} | ({"ema": state.moving} if state.moving else {})
        checkpoint.save(folder, tables, {"identity": to_dict(identity.member), "row": row})
        save(state, job, identity)
        _write_history(state, job)


def save(state: State, job: Job, identity: RunIdentity) -> None:
    """Commit a checkpoint to resume from, and remove the checkpoints that are no longer needed."""
    folder = MemberFolder(job.folder).checkpoints
    progress = state.progress
    values = {"identity": identity.to_json(), "progress": vars(progress), "scaler": state.scaler.state_dict()}
    checkpoint.save(folder / f"step-{progress.step:08d}", _collect_tables(state), values)
    checkpoint.remove_older(folder, KEPT_CHECKPOINTS)


def _collect_tables(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """Return all tensors that a run needs to continue, by table and name."""
    tables = {"model": state.model.state_dict(), "optimizer": checkpoint.optimizer_tensors(state.optimizer)}
    return tables | ({"ema": state.moving} if state.moving else {})


def find_not_finite(state: State) -> list[str]:
    """Return the names, as TABLE.NAME, of the tensors that hold NaN or infinity."""
    flat = {f"{table}.{name}": value for table, own in _collect_tables(state).items() for name, value in own.items()}
    if torch.isfinite(nn.utils.get_total_norm(flat.values(), torch.inf)):  # the maximum, which cannot overflow
        return []
    return [name for name, value in flat.items() if not value.isfinite().all()]


def describe_not_finite(bad: list[str]) -> str:
    """Return a clause about the tensors that `find_not_finite` returned, for an error."""
    return f"{bad[0]} is not finite" if len(bad) == 1 else f"{bad[0]} and {len(bad) - 1} more are not finite"


def require_finite(state: State, job: Job, rank: int) -> None:
    """Raise a `UserError` if the state holds NaN or infinity, which must not be committed.

    Adam's update can overflow although the gradient was finite. Every rank checks before a save that all ranks know of,
    so all of them stop.
    """
    bad = find_not_finite(state)
    require(
        not bad,
        f"After step {state.progress.step} of {job.folder.name}, {describe_not_finite(bad or [''])} on rank {rank}. "
        "The step is not saved: the newest checkpoint is good. Lower optim.learning-rate, or raise optim.warmup-steps.",
    )


def _write_history(state: State, job: Job) -> None:
    history = MemberFolder(job.folder).history
    remove_temporary_files(job.folder, history.name)
    write_text(history, "".join(json.dumps(row) + "\n" for row in state.progress.history or []))
