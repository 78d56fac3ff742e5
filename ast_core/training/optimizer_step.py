"""One optimizer step: augment, forward and backward, check that every number is finite, update.

A step has two halves. `queue_step` queues all work on the device, which itself decides whether it may update the
weights. `finish_step` reads the step's few numbers, the only wait of a step. On a GPU the trainer queues the next step
first, so the GPU never waits for the host.

Nothing here draws from torch's global random state: the augmentation has a hash of its own, and the model has no
dropout. Shapes: B clips, T frames, M mel bins, C classes, K kept patches, W ranks.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ast_core.config import Job
from ast_core.errors import UserError
from ast_core.model.lora import merged_weights
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


@dataclass(frozen=True)
class QueuedStep:
    """A step whose work is queued on the device, and whose numbers the host has not read."""

    step: int
    """Optimizer steps done with this one since the training began."""
    learning_rate: float
    """Learning rate of the step, without the head's own and the layers' decay."""
    batch: Batch
    """This rank's share of the batch."""
    input_BTM: torch.Tensor
    """Input of the model."""
    numbers_W3: torch.Tensor
    """Loss and gradient norm of each rank, and 1 if the step made the state faulty, else 0; float64 on the host."""
    arrived: torch.cuda.Event | None
    """Event after which `numbers_W3` holds the numbers; None if it already does."""

    def read(self) -> tuple[list[float], list[float], bool]:
        """Wait for the numbers; return the loss and gradient norm of each rank, and whether the step is faulty.

        All ranks return the same, so all ranks decide the same.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        losses, norms, faults = self.numbers_W3.T.tolist()
        return losses, norms, any(faults)


def optimizer_step(
    state: State, job: Job, batch: Batch, train: ShardReader, epoch: int, mean: float, std: float
) -> float:
    """Do one optimizer step and wait for its result; see `queue_step` and `finish_step`."""
    return finish_step(state, job, queue_step(state, job, batch, epoch, mean, std), train)


def queue_step(state: State, job: Job, batch: Batch, epoch: int, mean: float, std: float) -> QueuedStep:
    """Queue one optimizer step on this rank's share of a batch, and count it in `state.progress`.

    The weights change only if the step and all steps before it are finite on every rank.

    Args:
        state: model, optimizer and progress; changed in place.
        job: the training.
        batch: this rank's share of the batch, on the state's device.
        epoch: counted from 1.
        mean: mean of the training set's log-mel.
        std: standard deviation of the training set's log-mel.
    """
    optim, rate = job.optim, learning_rate(job.optim, epoch, state.progress.step)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(optim, epoch, state.progress.step, group["peak"])
    input_BTM = augment.apply(batch.choices, job.augment, batch.fbank_BTM, batch.partner_KTM, mean, std)
    state.optimizer.zero_grad(set_to_none=True)
    loss = _accumulate_gradient(state, job, batch, input_BTM)
    state.scaler.unscale_(state.optimizer)
    norm = _compute_gradient_norm(state)
    numbers_W2 = _gather_numbers(loss, norm)
    _update(state, optim.clip_norm, numbers_W2, norm)
    if state.moving:
        _update_moving_average(state, optim.ema_decay)
    state.progress.step += 1
    numbers_W3 = torch.cat([numbers_W2, state.faulty.double().expand(len(numbers_W2), 1)], dim=1)
    return QueuedStep(state.progress.step, rate, batch, input_BTM, *_copy_to_host(numbers_W3))


def finish_step(state: State, job: Job, queued: QueuedStep, train: ShardReader) -> float:
    """Wait for a queued step, and add its loss to `state.progress`.

    Args:
        state: the state that the step was queued on; at most one later step may be queued.
        job: the training.
        queued: the step.
        train: the training clips, to name clips in an error.

    Returns:
        Mean loss of the batch over all ranks.

    Raises:
        UserError: a loss or gradient is not finite on some rank; neither this step nor a later one was applied.
    """
    losses, _, faulty = queued.read()
    if faulty:
        _raise_not_finite(state, job, queued, _list_clip_ids(queued.batch, train))
    loss = math.fsum(losses) / len(losses)
    state.progress.loss_sum += loss
    return loss


def _gather_numbers(*own: torch.Tensor) -> torch.Tensor:
    """Return the given scalars of all ranks on the device, float64 [W, len(own)]; every rank returns the same."""
    row = torch.stack([value.double() for value in own])
    if not distributed.is_initialized():
        return row[None]
    table = row.new_empty(distributed.get_world_size() * len(own))
    distributed.all_gather_into_tensor(table, row)
    return table.view(-1, len(own))


def _copy_to_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Queue a copy to the host; return the copy, and the event after which it is complete."""
    if values.device.type != "cuda":
        return values, None
    copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copied, arrived


def _compute_gradient_norm(state: State) -> torch.Tensor:
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _update(state: State, clip_norm: float, numbers_W2: torch.Tensor, norm: torch.Tensor) -> None:
    """Clip the gradient and update the weights, unless a number is not finite. The device decides; nothing waits."""
    blocked = ~numbers_W2.isfinite().all()
    state.faulty |= blocked & ~_is_fp16_overflow(state, numbers_W2[:, 0]) if state.scaler.is_enabled() else blocked
    if clip_norm:
        nn.utils.clip_grads_with_norm_(state.model.parameters(), clip_norm, norm)
    # The fused Adam reads this attribute, as GradScaler sets it: 1 leaves weights and moments as they are.
    state.optimizer.found_inf = (blocked | state.faulty).float()  # type: ignore[attr-defined]
    state.optimizer.step()
    state.scaler.update()


def _is_fp16_overflow(state: State, loss_W: torch.Tensor) -> torch.Tensor:
    """Return whether fp16's range alone is the cause: the scaler then skips this step and lowers its scale."""
    scale = state.scaler.scale(torch.ones((), device=state.device))
    return (scale >= LOWEST_SCALE) & loss_W.isfinite().all()


@torch.no_grad()
def _update_moving_average(state: State, decay: float) -> None:
    for name, value in merged_weights(state.model).items():
        state.moving[name].lerp_(value, 1 - decay)


def _accumulate_gradient(
    state: State, job: Job, batch: Batch, input_BTM: torch.Tensor, *, alone: bool = False
) -> torch.Tensor:
    """Run forward and backward on a rank's share, in `optim.accumulate` parts, and return the share's mean loss.

    Ranks exchange gradients only in the backward pass of the last part; with `alone` they do not exchange them.
    """
    device, optim, clips = state.device, job.optim, len(input_BTM)
    total = torch.zeros((), dtype=torch.float64, device=device)
    size = -(-clips // optim.accumulate)
    for first in range(0, clips, size):
        part = slice(first, first + size)
        local = (alone or first + size < clips) and isinstance(state.replica, DistributedDataParallel)
        with state.replica.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
                kept_BK = None if batch.kept_BK is None else batch.kept_BK[part]
                logits_BC = state.replica(input_BTM[part], batch.num_frames_B[part], kept_BK)
            loss = training_loss(optim.loss, logits_BC, batch.labels_BC[part]) * (len(logits_BC) / clips)
            state.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _raise_not_finite(state: State, job: Job, queued: QueuedStep, clips: list[str]) -> NoReturn:
    """Raise a `UserError` that names the ranks whose own loss or gradient is not finite, and their clips.

    All ranks call this function. Their gradients are already averaged, so the NaN of one rank has reached all of them:
    each rank computes its own gradient again, without the others. The weights are still those of the step.
    """
    losses, _, _ = queued.read()
    loss = losses[distributed.get_rank() if distributed.is_initialized() else 0]
    state.optimizer.zero_grad(set_to_none=True)
    _accumulate_gradient(state, job, queued.batch, queued.input_BTM, alone=True)
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
        f"Step {queued.step} of {job.folder.name} is not finite {'; '.join(found)}. Nothing was updated: "
        "the newest checkpoint is good. Look at these clips, or lower optim.learning-rate."
    )


def _list_clip_ids(batch: Batch, train: ShardReader) -> list[str]:
    """Return the ids of a batch's clips, then those of the clips mixed in, each once."""
    chosen = dict.fromkeys([*batch.clip_indices.tolist(), *batch.partner_indices.tolist()])
    return [train.clip_ids[index] for index in chosen]
