"""One optimiser step: augment, forward and backward, look whether all is finite, update."""

from __future__ import annotations

import contextlib
import math
from typing import NoReturn

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ast_core.config import Job
from ast_core.errors import UserError
from ast_core.model.loss import training_loss
from ast_core.shards.reader import ShardReader
from ast_core.training import augment
from ast_core.training.batches import Batch
from ast_core.training.schedule import learning_rate
from ast_core.training.state import State, named, not_finite

LOWEST_SCALE = 1.0
"""Of fp16's scaler: a gradient that overflows below it would overflow unscaled, too."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def optimizer_step(
    state: State, job: Job, batch: Batch, train: ShardReader, epoch: int, mean: float, std: float
) -> float:
    """One optimiser step on this rank's share of a batch; `state.progress` counts it.

    Args:
        state: changed in place.
        job: the recipe.
        batch: of this rank.
        train: to name clips by.
        epoch: counted from 1.
        mean: of the training set.
        std: of the training set.

    Returns:
        The mean loss of the whole batch, over all ranks.

    Raises:
        UserError: a loss or gradient is not finite on some rank; nothing was updated.
    """
    device, optim = state.device, job.optim
    torch.manual_seed(_seed(job, state))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(optim, epoch, state.progress.step)
    fbank_BTM, partner_KTM = batch.fbank_BTM.to(device), batch.partner_KTM.to(device)
    input_BTM = augment.apply(batch.draws, job.augment, fbank_BTM, partner_KTM, mean, std)
    state.optimizer.zero_grad(set_to_none=True)
    own_loss = _accumulate_gradient(state, job, batch, input_BTM)
    losses, norms = _of_all_ranks(device, own_loss, float(_gradient_norm(state)))
    if not all(map(math.isfinite, losses + norms)) and not _only_overflowed(state, losses):
        _stop(state, job, batch, input_BTM, own_loss, _clips(batch, train))
    if optim.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.moving:
        _move_average(state, optim.ema_decay)
    loss = math.fsum(losses) / len(losses)
    state.progress.step += 1
    state.progress.loss_sum += loss
    return loss


def _of_all_ranks(device: torch.device, *own: float) -> list[list[float]]:
    """Each of some numbers on every rank, in the ranks' order: the same lists everywhere, so all ranks decide alike."""
    if not distributed.is_initialized():
        return [[value] for value in own]
    row = torch.tensor(own, dtype=torch.float64, device=device)
    table = row.new_empty(distributed.get_world_size() * len(own))
    distributed.all_gather_into_tensor(table, row)
    columns: list[list[float]] = table.view(-1, len(own)).T.tolist()
    return columns


def _gradient_norm(state: State) -> torch.Tensor:
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _only_overflowed(state: State, losses: list[float]) -> bool:
    """Whether fp16 alone is to blame: the scaler then leaves this step out and lowers its scale."""
    overflows = state.scaler.is_enabled() and state.scaler.get_scale() >= LOWEST_SCALE
    return overflows and all(map(math.isfinite, losses))


@torch.no_grad()
def _move_average(state: State, decay: float) -> None:
    for name, value in state.model.state_dict().items():
        state.moving[name].lerp_(value, 1 - decay)


def _accumulate_gradient(
    state: State, job: Job, batch: Batch, input_BTM: torch.Tensor, *, alone: bool = False
) -> float:
    """Forward and backward of a rank's share, in as many parts as the recipe says; gives the share's mean loss.

    Ranks exchange gradients in the last part's backward only; if a rank is to be `alone`, not at all.
    """
    device, optim, clips = state.device, job.optim, len(input_BTM)
    labels_BC, num_frames_B = batch.labels_BC.to(device), batch.num_frames_B.to(device)
    kept_BK = None if batch.kept_BK is None else batch.kept_BK.to(device)
    total = 0.0
    size = -(-clips // optim.accumulate)
    for first in range(0, clips, size):
        part = slice(first, first + size)
        waits = (alone or first + size < clips) and isinstance(state.replica, DistributedDataParallel)
        with state.replica.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
                kept = None if kept_BK is None else kept_BK[part]
                logits_BC = state.replica(input_BTM[part], num_frames_B[part], kept)
            loss = training_loss(optim.loss, logits_BC, labels_BC[part]) * (len(logits_BC) / clips)
            state.scaler.scale(loss).backward()
        total += float(loss.detach())
    return total


def _stop(state: State, job: Job, batch: Batch, input_BTM: torch.Tensor, loss: float, clips: list[str]) -> NoReturn:
    """UserError that names the ranks whose own loss or gradient is not finite, and their clips. All ranks come here.

    Gradients are averaged over ranks by now and one rank's NaN is everyone's, so each computes its own again, apart.
    """
    torch.manual_seed(_seed(job, state))
    state.optimizer.zero_grad(set_to_none=True)
    _accumulate_gradient(state, job, batch, input_BTM, alone=True)
    own = (loss, float(_gradient_norm(state)), clips, not_finite(state))
    ranks = [own]
    if distributed.is_initialized():
        ranks *= distributed.get_world_size()
        distributed.all_gather_object(ranks, own)
    guilty = [rank for rank, (loss, norm, _, bad) in enumerate(ranks) if bad or not math.isfinite(loss + norm)]
    found = []
    for rank in guilty or range(len(ranks)):  # each alone is finite where only their sum overflows
        loss, norm, clips, bad = ranks[rank]
        numbers = ", ".join([f"loss {loss:.4g}", f"gradient norm {norm:.4g}", *([named(bad)] if bad else [])])
        found.append(f"on rank {rank} ({numbers}) with clips {', '.join(clips)}")
    raise UserError(
        f"Step {state.progress.step + 1} of {job.folder.name} is not finite {'; '.join(found)}. Nothing was updated: "
        "the newest checkpoint is good. Look at these clips, or lower optim.learning-rate."
    )


def _clips(batch: Batch, train: ShardReader) -> list[str]:
    """Whatever is in a batch: its clips, then those mixed in."""
    mixed_in = batch.draws.partner_B[batch.draws.mixed_K]
    return [train.clip_ids[index] for index in dict.fromkeys([*batch.clip_indices.tolist(), *mixed_in.tolist()])]


def _seed(job: Job, state: State) -> int:
    """Of whatever draws on a device: by step."""
    return hash((job.seed, state.progress.step)) % 2**31
