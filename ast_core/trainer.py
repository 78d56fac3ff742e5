"""Training of one member: resume, epochs of steps, evaluation, checkpoints. One process a rank; knows no Ray.

What a run is, is an integer: the step. Order, augmentation and rate follow from (seed, epoch, step), so a resumed run
ends with the bits of an uninterrupted one on as many ranks.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from ast_core import augment, checkpoint, metrics, order
from ast_core.config import WAYS_IN, Job, require, to_dict
from ast_core.errors import UserError
from ast_core.files import committed, digest
from ast_core.loss import probabilities, training_loss
from ast_core.model import AST, patch_grid
from ast_core.pretrained import initialise
from ast_core.schedule import learning_rate
from ast_core.shards import ShardReader

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KEPT_CHECKPOINTS = 2
"""The newest, and the one before it in case the newest is found damaged."""


@dataclass
class Progress:
    """What a checkpoint remembers besides tensors."""

    step: int = 0
    """Optimiser steps done."""
    loss_sum: float = 0.0
    """Sum of this epoch's losses so far, over rank 0's share."""
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


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step, on the host."""

    clip_indices: np.ndarray
    fbank_BTM: torch.Tensor
    partner_BTM: torch.Tensor
    labels_BC: torch.Tensor
    draws: augment.Draws
    num_frames_B: torch.Tensor
    """Frames that are not padding; of a mixture, the longer one's."""
    kept_BK: torch.Tensor | None
    """Patches that take part; None for all."""


def fit(job: Job, rank: int, world: int, device: torch.device) -> None:
    """Train to the last epoch, from the newest verified checkpoint if there is one.

    Args:
        job: what to train.
        rank: of this process.
        world: processes; `torch.distributed` is set up if there is more than one.
        device: of this process.

    Raises:
        UserError: the run folder holds another run, the data does not fit, or the loss is not finite.
    """
    require(
        job.optim.batch_size % world == 0,
        f"optim.batch-size {job.optim.batch_size} cannot be shared by {world} workers; choose a multiple of {world}.",
    )
    train = ShardReader(job.shards, job.data.train_splits)
    held_out = ShardReader(job.shards, [job.data.validation_split or job.data.test_split])
    mean, std = normalisation(job, train)
    state = _fresh(job, train, device, world)
    identity = {"member": member_identity(job, train, mean, std), "run": run_identity(job, train)}
    _resume(state, job, identity, rank, world)
    steps = order.steps_per_epoch(len(train), job.optim.batch_size)
    while state.progress.step < steps * job.optim.epochs:
        epoch = state.progress.step // steps + 1
        started, first = time.monotonic(), state.progress.step
        for batch in _batches(job, train, epoch, rank, world, state.progress.step % steps):
            _step(state, job, batch, train, epoch, mean, std)
            done = state.progress.step
            if rank == 0 and done % job.optim.checkpoint_every_steps == 0 and done % steps:
                _save(state, job, identity)
        seconds = time.monotonic() - started
        row = _epoch_row(state, job, held_out, epoch, steps, mean, std, rank, world)
        row |= {"seconds": seconds, "clips_per_s": (state.progress.step - first) * job.optim.batch_size / seconds}
        _finish_epoch(state, job, identity, row, epoch, rank)
    if world > 1:
        distributed.barrier()


def normalisation(job: Job, train: ShardReader) -> tuple[float, float]:
    """Mean and standard deviation: the recipe's, or the training splits' own."""
    if job.data.mean is not None and job.data.std is not None:
        return job.data.mean, job.data.std
    return train.index.statistics(job.data.train_splits)


def member_identity(job: Job, train: ShardReader, mean: float, std: float) -> dict[str, Any]:
    """What a model's weights mean: stored with each checkpoint, compared before averaging and in bundles."""
    own = to_dict(job.front_end)
    stored = train.index.front_end
    other = {key: (stored[key], value) for key, value in own.items() if key in stored and stored[key] != value}
    require(
        not other,
        f"The shards in {job.shards} were made with another front end: "
        + ", ".join(f"{key} {have}, not {want}" for key, (have, want) in other.items())
        + ". Prepare again into another folder, or take the recipe they were made with.",
    )
    model = {key: value for key, value in to_dict(job.model).items() if key not in WAYS_IN}
    labels = list(train.index.labels)
    return {"model": model, "front_end": own, "labels": labels, "mean": mean, "std": std, "loss": job.optim.loss}


def run_identity(job: Job, train: ShardReader) -> dict[str, Any]:
    """What else decides the bits of a run; a resume needs it unchanged. More epochs only continue a run."""
    free = {"epochs", "checkpoint_every_steps", "weights", "average_first_epoch", "activation_checkpointing"}
    optim = {key: value for key, value in to_dict(job.optim).items() if key not in free}
    return {
        "augment": to_dict(job.augment),
        "data_hash": train.index.data_hash,
        "way_in": {key: getattr(job.model, key) for key in WAYS_IN},
        "optim": optim,
        "seed": job.seed,
        "train_splits": list(job.data.train_splits),
    }


def score(model: nn.Module, job: Job, reader: ShardReader, indices: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Probabilities of clips, float32 [len(indices), C], by the model's own device."""
    device = next(model.parameters()).device
    model.eval()
    rows = [np.zeros((0, len(reader.index.labels)), np.float32)]
    with torch.inference_mode():
        for first in range(0, len(indices), 32):
            chosen = indices[first : first + 32]
            fbank_BTM = torch.from_numpy(reader.read(chosen)).to(device).float()
            num_frames_B = torch.from_numpy(reader.num_frames_N[chosen]).to(device)
            logits_BC = model((fbank_BTM - mean) / (2 * std), num_frames_B)
            rows.append(probabilities(job.optim.loss, logits_BC).cpu().numpy())
    model.train()
    return np.concatenate(rows)


def _fresh(job: Job, train: ShardReader, device: torch.device, world: int) -> State:
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


def _resume(state: State, job: Job, identity: dict[str, Any], rank: int, world: int) -> None:
    """Put the newest verified checkpoint into `state`; every rank takes the one that rank 0 chose."""
    chosen: list[Any] = [None]
    if rank == 0:
        path, passed_over = checkpoint.newest(job.folder / "checkpoints")
        for sentence in passed_over:
            print(f"{sentence} The one before it is used.")
        chosen = [path]
    if world > 1:
        distributed.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return
    stored = checkpoint.read_state(chosen[0])
    changed = [
        f"{part}.{key}" for part, values in identity.items() for key, value in values.items()
        if digest(stored["identity"][part].get(key)) != digest(value)
    ]  # fmt: skip
    require(
        not changed,
        f"{job.folder} holds a run with other settings or data ({', '.join(changed)} differ). "
        "Choose another --run-dir, or remove that folder to start again.",
    )
    state.model.load_state_dict(checkpoint.read_tensors(chosen[0], "model"))
    if state.moving:
        stored_average = checkpoint.read_tensors(chosen[0], "ema")
        state.moving = {name: value.to(state.device) for name, value in stored_average.items()}
    checkpoint.restore_optimizer(state.optimizer, checkpoint.read_tensors(chosen[0], "optimizer"))
    if stored["scaler"]:
        state.scaler.load_state_dict(stored["scaler"])
    state.progress = Progress(**stored["progress"])
    if rank == 0:
        _write_history(state, job)
        print(f"Resumed at step {state.progress.step} from {chosen[0]}.")


def _batches(job: Job, train: ShardReader, epoch: int, rank: int, world: int, first_step: int) -> Iterator[Batch]:
    """A rank's batches of an epoch, read one ahead in a thread."""
    epoch_order = order.epoch_order(job.optim.sampler, train.labels_NC, job.seed, epoch)
    steps = order.rank_steps(len(train), job.optim.batch_size, rank, world, first_step)
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for positions in steps:
            following = pool.submit(_read_batch, job, train, epoch, epoch_order, positions)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _read_batch(job: Job, train: ShardReader, epoch: int, epoch_order: np.ndarray, positions: np.ndarray) -> Batch:
    front = job.front_end
    own = epoch_order[positions % len(epoch_order)]
    draws = augment.draw(
        job.augment, job.seed, epoch, positions, len(train), front.target_frames, front.num_mel_bins
    )  # fmt: skip
    partners = np.where(draws.lambda_B < 1, draws.partner_B, own)
    rows = torch.from_numpy(train.read(np.concatenate([own, partners])))
    labels = torch.from_numpy(train.labels_NC)
    labels_BC = augment.mix_labels(labels[own], labels[partners], torch.from_numpy(draws.lambda_B))
    num_frames_B = torch.from_numpy(np.maximum(train.num_frames_N[own], train.num_frames_N[partners]))
    grid = patch_grid(job.model, front.num_mel_bins, front.target_frames)
    kept = augment.patchout(job.augment, job.seed, epoch, positions, grid)
    kept_BK = None if kept is None else torch.from_numpy(kept)
    return Batch(own, rows[: len(own)], rows[len(own) :], labels_BC, draws, num_frames_B, kept_BK)


def _step(state: State, job: Job, batch: Batch, train: ShardReader, epoch: int, mean: float, std: float) -> None:
    """One optimiser step."""
    device, optim = state.device, job.optim
    torch.manual_seed(hash((job.seed, state.progress.step)) % 2**31)  # whatever draws on a device, by step
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(optim, epoch, state.progress.step)
    fbank_BTM, partner_BTM = batch.fbank_BTM.to(device).float(), batch.partner_BTM.to(device).float()
    input_BTM = augment.apply(batch.draws, job.augment, fbank_BTM, partner_BTM, mean, std)
    state.optimizer.zero_grad(set_to_none=True)
    loss = _accumulate_gradient(state, job, batch, input_BTM)
    _require_finite(state, job, loss, [train.clip_ids[index] for index in batch.clip_indices])
    if optim.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    with torch.no_grad():
        for name, value in state.model.state_dict().items():
            if name in state.moving:
                state.moving[name].lerp_(value, 1 - optim.ema_decay)
    state.progress.step += 1
    state.progress.loss_sum += loss


def _accumulate_gradient(state: State, job: Job, batch: Batch, input_BTM: torch.Tensor) -> float:
    """Forward and backward of a rank's share, in as many parts as the recipe says; gives the share's mean loss.

    Ranks exchange gradients in the last part's backward only.
    """
    device, optim, clips = state.device, job.optim, len(input_BTM)
    labels_BC, num_frames_B = batch.labels_BC.to(device), batch.num_frames_B.to(device)
    kept_BK = None if batch.kept_BK is None else batch.kept_BK.to(device)
    total = 0.0
    size = -(-clips // optim.accumulate)
    for first in range(0, clips, size):
        part = slice(first, first + size)
        waits = first + size < clips and isinstance(state.replica, DistributedDataParallel)
        with state.replica.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
                kept = None if kept_BK is None else kept_BK[part]
                logits_BC = state.replica(input_BTM[part], num_frames_B[part], kept)
            loss = training_loss(optim.loss, logits_BC, labels_BC[part]) * (len(logits_BC) / clips)
            state.scaler.scale(loss).backward()
        total += float(loss.detach())
    return total


def _require_finite(state: State, job: Job, loss: float, clips: list[str]) -> None:
    """Stop all ranks before the update, naming clips, if a loss or (but for fp16's scaler) a gradient is not finite.

    Gradients are averaged over ranks by now: one rank's NaN is everyone's, so all ranks come here at the same step.
    """
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if torch.isfinite(norm):
        return
    ranks: list[tuple[float, list[str]]] = [(loss, clips)]
    if distributed.is_initialized():
        ranks = [(loss, clips)] * distributed.get_world_size()
        distributed.all_gather_object(ranks, (loss, clips))
    guilty = [rank for rank in ranks if not math.isfinite(rank[0])]
    if state.scaler.is_enabled() and not guilty:
        return  # fp16 overflowed: the scaler leaves this step out and lowers its scale
    shown = guilty or ranks
    losses = ", ".join(f"{value:.4g}" for value, _ in shown)
    raise UserError(
        f"Step {state.progress.step + 1} of {job.folder.name} is not finite (loss {losses}, gradient norm "
        f"{float(norm):.4g}) with clips {', '.join(clip for _, own in shown for clip in own)}. Nothing was updated: "
        "the newest checkpoint is good. Look at these clips, or lower optim.learning-rate."
    )


def _epoch_row(
    state: State,
    job: Job,
    held_out: ShardReader,
    epoch: int,
    steps: int,
    mean: float,
    std: float,
    rank: int,
    world: int,
) -> dict[str, float]:
    """The epoch's metrics: losses and rate, and scores on the held-out split, each of its clips seen once."""
    share = order.evaluation_share(len(held_out), rank, world)
    scores = score(state.model, job, held_out, share, mean, std)
    gathered: list[Any] = [(share, scores, state.progress.loss_sum)]
    if world > 1:
        gathered = [None] * world
        distributed.all_gather_object(gathered, (share, scores, state.progress.loss_sum))
    all_NC = np.zeros((len(held_out), scores.shape[1]), np.float32)
    for indices, values, _ in gathered:
        all_NC[indices] = values
    name = "validation" if job.data.validation_split else "test"
    result = metrics.evaluate_scores(all_NC, held_out.labels_NC, held_out.index.single_label)
    row = {
        "epoch": epoch,
        "step": state.progress.step,
        "learning_rate": learning_rate(job.optim, epoch, state.progress.step - 1),
        "train_loss": sum(loss for _, _, loss in gathered) / world / steps,
    }
    return row | {f"{name}_{key}": value for key, value in result.items() if not key.startswith("chance")}


def _finish_epoch(
    state: State, job: Job, identity: dict[str, Any], row: dict[str, float], epoch: int, rank: int
) -> None:
    """Commit the epoch's weights for averaging, then a checkpoint to resume from, then the curve."""
    state.progress.loss_sum = 0.0
    state.progress.history = [*(state.progress.history or []), row]
    if rank == 0:
        folder = job.folder / "epochs" / f"epoch-{epoch:04d}"
        tables = {"model": state.model.state_dict()} | ({"ema": state.moving} if state.moving else {})
        checkpoint.save(folder, tables, {"identity": identity["member"], "row": row})
        _save(state, job, identity)
        _write_history(state, job)


def _save(state: State, job: Job, identity: dict[str, Any]) -> None:
    folder = job.folder / "checkpoints"
    progress = state.progress
    tables = {"model": state.model.state_dict(), "optimizer": checkpoint.optimizer_tensors(state.optimizer)}
    tables |= {"ema": state.moving} if state.moving else {}
    values = {"identity": identity, "progress": vars(progress), "scaler": state.scaler.state_dict()}
    checkpoint.save(folder / f"step-{progress.step:08d}", tables, values)
    checkpoint.keep_newest(folder, KEPT_CHECKPOINTS)


def _write_history(state: State, job: Job) -> None:
    with committed(job.folder / "metrics.jsonl") as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in state.progress.history or []), encoding="utf-8")
