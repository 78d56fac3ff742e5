"""Batches of one rank in an epoch: clips, mixup partners, masks, patches. All follow from (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ast_core.config import Job
from ast_core.model.transformer import patch_grid
from ast_core.shards.reader import ShardReader
from ast_core.training import augment, order


@dataclass(frozen=True)
class Batch:
    """One rank's share of the clips of a step, on the host."""

    clip_indices: np.ndarray
    """Indices of the clips in the training set, int64 [B]."""
    fbank_BTM: torch.Tensor
    """Raw log-mel of the clips."""
    partner_KTM: torch.Tensor
    """Raw log-mel of the partners of the mixed clips."""
    labels_BC: torch.Tensor
    """Targets, mixed where clips are mixed, float32."""
    draws: augment.Draws
    """Random choices of the augmentation."""
    num_frames_B: torch.Tensor
    """Frames that are not padding; a mixture has those of its longer clip."""
    kept_BK: torch.Tensor | None
    """Indices of the patches that take part; None if all do."""


def iterate_batches(
    job: Job, train: ShardReader, epoch: int, rank: int, world: int, first_step: int
) -> Iterator[Batch]:
    """Yield a rank's batches of an epoch from `first_step` on; a thread reads one batch ahead."""
    epoch_order = order.epoch_order(job.optim.sampler, train.labels_NC, job.seed, epoch)
    steps = order.rank_steps(len(train), job.optim.batch_size, rank, world, first_step)
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for positions in steps:
            following = pool.submit(read_batch, job, train, epoch, epoch_order, positions)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def read_batch(job: Job, train: ShardReader, epoch: int, epoch_order: np.ndarray, positions: np.ndarray) -> Batch:
    """Read the batch at the given positions of an epoch's order."""
    front = job.front_end
    own = epoch_order[positions % len(epoch_order)]
    draws = augment.draw(
        job.augment, job.seed, epoch, positions, len(train), front.target_frames, front.num_mel_bins
    )  # fmt: skip
    partners = np.where(draws.lambda_B < 1, draws.partner_B, own)
    rows = torch.from_numpy(train.read(np.concatenate([own, partners[draws.mixed_K]])))
    labels = torch.from_numpy(train.targets_NC)
    labels_BC = augment.mix_labels(labels[own].float(), labels[partners].float(), torch.from_numpy(draws.lambda_B))
    num_frames_B = torch.from_numpy(np.maximum(train.num_frames_N[own], train.num_frames_N[partners]))
    grid = patch_grid(job.model, front.num_mel_bins, front.target_frames)
    kept = augment.patchout(job.augment, job.seed, epoch, positions, grid)
    kept_BK = None if kept is None else torch.from_numpy(kept)
    return Batch(own, rows[: len(own)], rows[len(own) :], labels_BC, draws, num_frames_B, kept_BK)
