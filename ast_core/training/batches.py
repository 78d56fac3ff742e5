"""One rank's batches of an epoch: clips, partners, masks, patches; a function of (seed, epoch, step)."""

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
    """One rank's share of a step, on the host."""

    clip_indices: np.ndarray
    fbank_BTM: torch.Tensor
    partner_KTM: torch.Tensor
    """Of the clips that are mixed."""
    labels_BC: torch.Tensor
    draws: augment.Draws
    num_frames_B: torch.Tensor
    """Frames that are not padding; of a mixture, the longer one's."""
    kept_BK: torch.Tensor | None
    """Patches that take part; None for all."""


def iterate_batches(
    job: Job, train: ShardReader, epoch: int, rank: int, world: int, first_step: int
) -> Iterator[Batch]:
    """A rank's batches of an epoch, read one ahead in a thread."""
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
    """The batch at these positions of an epoch's order."""
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
