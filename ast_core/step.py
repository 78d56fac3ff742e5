"""One optimiser step: augment, forward and backward, look whether all is finite, update."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ast_core import augment
from ast_core.batches import Batch
from ast_core.config import Job
from ast_core.errors import UserError
from ast_core.loss import training_loss
from ast_core.schedule import learning_rate
from ast_core.shards import ShardReader
from ast_core.state import State

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def step(state: State, job: Job, batch: Batch, train: ShardReader, epoch: int, mean: float, std: float) -> float:
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
        The mean loss of this rank's share.

    Raises:
        UserError: a loss or gradient is not finite on some rank; nothing was updated.
    """
    device, optim = state.device, job.optim
    torch.manual_seed(hash((job.seed, state.progress.step)) % 2**31)  # whatever draws on a device, by step
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(optim, epoch, state.progress.step)
    fbank_BTM, partner_KTM = batch.fbank_BTM.to(device), batch.partner_KTM.to(device)
    input_BTM = augment.apply(batch.draws, job.augment, fbank_BTM, partner_KTM, mean, std)
    state.optimizer.zero_grad(set_to_none=True)
    loss = _accumulate_gradient(state, job, batch, input_BTM)
    _require_finite(state, job, loss, [train.clip_ids[index] for index in batch.clip_indices])
    if optim.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.moving:
        _move_average(state, optim.ema_decay)
    state.progress.step += 1
    state.progress.loss_sum += loss
    return loss


@torch.no_grad()
def _move_average(state: State, decay: float) -> None:
    for name, value in state.model.state_dict().items():
        state.moving[name].lerp_(value, 1 - decay)


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
