"""Batches of one rank in an epoch: clips, mixup partners, masks, patches. All follow from (seed, epoch, step).

Shapes: B clips, K of them mixed, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ast_core.config import Job
from ast_core.model.transformer import patch_grid
from ast_core.shards.reader import ShardReader
from ast_core.training import augment, order


@dataclass(frozen=True)
class Batch:
    """One rank's share of the clips of a step; its tensors are on one device."""

    clip_indices: np.ndarray
    """Indices of the clips in the training set, int64 [B]."""
    partner_indices: np.ndarray
    """Indices of the clips that are mixed in, int64 [K]."""
    fbank_BTM: torch.Tensor
    """Raw log-mel of the clips."""
    partner_KTM: torch.Tensor
    """Raw log-mel of the partners of the mixed clips."""
    labels_BC: torch.Tensor
    """Targets, mixed where clips are mixed, float32."""
    choices: augment.DrawTensors
    """Random choices of the augmentation."""
    num_frames_B: torch.Tensor
    """Frames that are not padding; a mixture has those of its longer clip."""
    kept_BK: torch.Tensor | None
    """Indices of the patches that take part; None if all do."""


CPU = torch.device("cpu")


def iterate_batches(
    job: Job, train: ShardReader, epoch: int, rank: int, world: int, first_step: int, device: torch.device = CPU
) -> Iterator[Batch]:
    """Yield a rank's batches of an epoch from `first_step` on; a thread reads and uploads one batch ahead."""
    epoch_order = order.epoch_order(job.optim.sampler, train.labels, job.seed, epoch)
    steps = order.rank_steps(len(train), job.optim.batch_size, rank, world, first_step)
    uploader = _Uploader(device) if device.type == "cuda" else None

    def read(positions: np.ndarray) -> Batch:
        batch = read_batch(job, train, epoch, epoch_order, positions)
        return uploader.upload(batch) if uploader else batch

    with ThreadPoolExecutor(1) as pool:
        pending = None
        for positions in steps:
            following = pool.submit(read, positions)
            if pending is not None:
                yield _receive(pending.result(), uploader)
            pending = following
        if pending is not None:
            yield _receive(pending.result(), uploader)


def read_batch(job: Job, train: ShardReader, epoch: int, epoch_order: np.ndarray, positions: np.ndarray) -> Batch:
    """Read the batch at the given positions of an epoch's order, on the host."""
    front = job.front_end
    own = epoch_order[positions % len(epoch_order)]
    draws = augment.draw(
        job.augment, job.seed, epoch, positions, len(train), front.target_frames, front.num_mel_bins
    )  # fmt: skip
    partners = np.where(draws.lambda_B < 1, draws.partner_B, own)
    mixed_in = partners[draws.mixed_K]
    rows = torch.from_numpy(train.read(np.concatenate([own, mixed_in])))
    own_BC, partner_BC = (torch.from_numpy(train.targets.rows(chosen)).float() for chosen in (own, partners))
    labels_BC = augment.mix_labels(own_BC, partner_BC, torch.from_numpy(draws.lambda_B))
    num_frames_B = torch.from_numpy(np.maximum(train.num_frames_N[own], train.num_frames_N[partners]))
    grid = patch_grid(job.model, front.num_mel_bins, front.target_frames)
    kept = augment.patchout(job.augment, job.seed, epoch, positions, grid)
    kept_BK = None if kept is None else torch.from_numpy(kept)
    return Batch(
        own, mixed_in, rows[: len(own)], rows[len(own) :], labels_BC, draws.to_tensors(), num_frames_B, kept_BK
    )  # fmt: skip


def move_batch(batch: Batch, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Return the batch with each of its tensors moved by a function."""
    choices = augment.DrawTensors(*(move(value) for value in vars(batch.choices).values()))
    own: dict[str, Any] = {name: move(value) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, choices=choices, **own)


class _Uploader:
    """Copies batches to a GPU on a stream of its own, while the steps before them run."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def upload(self, batch: Batch) -> Batch:
        """Queue the copies; the reading thread calls it. Only memory that is pinned is copied without waiting."""
        with torch.cuda.stream(self._stream):
            return move_batch(batch, lambda value: value.pin_memory().to(self._device, non_blocking=True))

    def receive(self, batch: Batch) -> Batch:
        """Let the current stream wait for the copies; the training thread calls it, and does not wait itself.

        The wait includes the copies of the batch after this one if they are queued by now, which take a few
        milliseconds.
        """
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for value in [*vars(batch.choices).values(), *vars(batch).values()]:
            if isinstance(value, torch.Tensor):
                value.record_stream(current)  # its memory must not be used again before this stream has read it
        return batch


def _receive(batch: Batch, uploader: _Uploader | None) -> Batch:
    return uploader.receive(batch) if uploader else batch
