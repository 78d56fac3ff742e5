"""One optimizer step: augment, forward and backward, check that every number is finite, update.

Nothing here draws from torch's global random state: the augmentation has generators of its own, and the model has no
dropout. Shapes: B clips, T frames, M mel bins, C classes, K kept patches.
"""

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
from ast_core.training.state import State, describe_not_finite, find_not_finite

LOWEST_SCALE = 1.0
"""Lowest useful scale of the fp16 scaler: a gradient that overflows below it would also overflow unscaled."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Type that the forward pass computes in, by `optim.precision`."""


def optimizer_step(
    state: State, job: Job, batch: Batch, train: ShardReader, epoch: int, mean: float, std: float
) -> float:
    """Do one optimizer step on this rank's share of a batch, and count it in `state.progress`.

    Args:
        state: model, optimizer and progress; changed in place.
        job: the training.
        batch: this rank's share of the batch.
        train: the training clips, to name clips in an error.
        epoch: counted from 1.
        mean: mean of the training set's log-mel.
        std: standard deviation of the training set's log-mel.

    Returns:
        Mean loss of the batch over all ranks.

    Raises:
        UserError: a loss or gradient is not finite on some rank; nothing was updated.
    """
    device, optim = state.device, job.optim
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(optim, epoch, state.progress.step)
    fbank_BTM, partner_KTM = batch.fbank_BTM.to(device), batch.partner_KTM.to(device)
    input_BTM = augment.apply(batch.draws, job.augment, fbank_BTM, partner_KTM, mean, std)
    state.optimizer.zero_grad(set_to_none=True)
    own_loss = _accumulate_gradient(state, job, batch, input_BTM)
    losses, norms = _gather_numbers(device, own_loss, float(_compute_gradient_norm(state)))
    if not all(map(math.isfinite, losses + norms)) and not _is_fp16_overflow(state, losses):
        _raise_not_finite(state, job, batch, input_BTM, own_loss, _list_clip_ids(batch, train))
    if optim.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.moving:
        _update_moving_average(state, optim.ema_decay)
    loss = math.fsum(losses) / len(losses)
    state.progress.step += 1
    state.progress.loss_sum += loss
    return loss


def _gather_numbers(device: torch.device, *own: float) -> list[list[float]]:
    """Return each of the given numbers as a list over all ranks.

    Every rank gets the same lists, so all ranks decide the same from them.
    """
    if not distributed.is_initialized():
        return [[value] for value in own]
    row = torch.tensor(own, dtype=torch.float64, device=device)
    table = row.new_empty(distributed.get_world_size() * len(own))
    distributed.all_gather_into_tensor(table, row)
    columns: list[list[float]] = table.view(-1, len(own)).T.tolist()
    return columns


def _compute_gradient_norm(state: State) -> torch.Tensor:
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _is_fp16_overflow(state: State, losses: list[float]) -> bool:
    """Return whether fp16's range alone is the cause: the scaler then skips this step and lowers its scale."""
    overflows = state.scaler.is_enabled() and state.scaler.get_scale() >= LOWEST_SCALE
    return overflows and all(map(math.isfinite, losses))


@torch.no_grad()
def _update_moving_average(state: State, decay: float) -> None:
    for name, value in state.model.state_dict().items():
        state.moving[name].lerp_(value, 1 - decay)


def _accumulate_gradient(
    state: State, job: Job, batch: Batch, input_BTM: torch.Tensor, *, alone: bool = False
) -> float:
    """Run forward and backward on a rank's share, in `optim.accumulate` parts, and return the share's mean loss.

    Ranks exchange gradients only in the backward pass of the last part; with `alone` they do not exchange them.
    """
    device, optim, clips = state.device, job.optim, len(input_BTM)
    labels_BC, num_frames_B = batch.labels_BC.to(device), batch.num_frames_B.to(device)
    kept_BK = None if batch.kept_BK is None else batch.kept_BK.to(device)
    total = 0.0
    size = -(-clips // optim.accumulate)
    for first in range(0, clips, size):
        part = slice(first, first + size)
        local = (alone or first + size < clips) and isinstance(state.replica, DistributedDataParallel)
        with state.replica.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
                kept = None if kept_BK is None else kept_BK[part]
                logits_BC = state.replica(input_BTM[part], num_frames_B[part], kept)
            loss = training_loss(optim.loss, logits_BC, labels_BC[part]) * (len(logits_BC) / clips)
            state.scaler.scale(loss).backward()
        total += float(loss.detach())
    return total


def _raise_not_finite(
    state: State, job: Job, batch: Batch, input_BTM: torch.Tensor, loss: float, clips: list[str]
) -> NoReturn:
    """Raise a `UserError` that names the ranks whose own loss or gradient is not finite, and their clips.

    All ranks call this function. Their gradients are already averaged, so the NaN of one rank has reached all of them:
    each rank computes its own gradient again, without the others.
    """
    state.optimizer.zero_grad(set_to_none=True)
    _accumulate_gradient(state, job, batch, input_BTM, alone=True)
    own = (loss, float(_compute_gradient_norm(state)), clips, find_not_finite(state))
    ranks = [own]
    if distributed.is_initialized():
        ranks *= distributed.get_world_size()
        distributed.all_gather_object(ranks, own)
    faulty = [rank for rank, (loss, norm, _, bad) in enumerate(ranks) if bad or not math.isfinite(loss + norm)]
    found = []
    for rank in faulty or range(len(ranks)):  # if only the sum over ranks overflows, each rank alone is finite
        loss, norm, clips, bad = ranks[rank]
        numbers = [f"loss {loss:.4g}", f"gradient norm {norm:.4g}", *([describe_not_finite(bad)] if bad else [])]
        found.append(f"on rank {rank} ({', '.join(numbers)}) with clips {', '.join(clips)}")
    raise UserError(
        f"Step {state.progress.step + 1} of {job.folder.name} is not finite {'; '.join(found)}. Nothing was updated: "
        "the newest checkpoint is good. Look at these clips, or lower optim.learning-rate."
    )


def _list_clip_ids(batch: Batch, train: ShardReader) -> list[str]:
    """Return the ids of a batch's clips, then those of the clips mixed in, each once."""
    mixed_in = batch.draws.partner_B[batch.draws.mixed_K]
    return [train.clip_ids[index] for index in dict.fromkeys([*batch.clip_indices.tolist(), *mixed_in.tolist()])]
