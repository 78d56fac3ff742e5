"""CPU time of a training input read from shards, against the published loader, which decodes and filters each clip.

Half of the inputs are mixed with another clip (mixup).

python benchmarks/loader.py
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from peers import published_loader
from peers.comparison import arguments, interleave, one_core, print_machine, print_medians, print_ratio
from peers.made_data import save_sounds, write_shards
from peers.training import job_on

from ast_core.config import Job
from ast_core.shards.reader import ShardReader
from ast_core.training import augment, order
from ast_core.training.batches import read_batch

GOAL = 10
BATCH, CLIPS, FILES, ROUNDS = 12, 480, 48, 25


class OurInputs:
    """Batches as `ast_core.training.optimizer_step` passes them to the model."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.reader = ShardReader(job.shards, job.data.train_splits)
        self.order_N = order.epoch_order("shuffle", self.reader.labels, job.seed, 1)
        self.steps = itertools.cycle(order.rank_steps(len(self.reader), job.optim.batch_size, 0, 1))

    def next_batch(self) -> torch.Tensor:
        """Return the next batch, normalised [B, T, M]."""
        batch = read_batch(self.job, self.reader, 1, self.order_N, next(self.steps))
        mean, std = published_loader.MEAN, published_loader.STD
        return augment.apply(batch.choices, self.job.augment, batch.fbank_BTM, batch.partner_KTM, mean, std)


class PublishedInputs:
    """Batches as the published loader stacks them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.rng = np.random.default_rng(0)

    def next_batch(self) -> torch.Tensor:
        """Return the next batch, normalised [B, T, M]."""
        chosen = self.rng.integers(len(self.paths), size=BATCH)
        return torch.stack([published_loader.training_sample(self.paths, int(index), self.rng) for index in chosen])


def main() -> None:
    """Time both loaders on 16 kHz wav, which is best for the published one: it need not decompress or resample."""
    args = arguments(__doc__).parse_args()
    one_core()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = job_on(folder, batch=BATCH)
        write_shards(job.shards, {"train": 24 if args.quick else CLIPS}, job.front_end)
        theirs = PublishedInputs(save_sounds(folder / "audio", ".wav", 16_000, 4 if args.quick else FILES))
        ways = {"published loader": theirs.next_batch, "ours": OurInputs(job).next_batch}
        seconds = interleave(ways, 2 if args.quick else ROUNDS)
    print_medians(seconds, "CPU time of a training input of 10 s, half of them mixed", per=BATCH)
    print_ratio(seconds, "published loader", goal=GOAL)
    print_machine()


if __name__ == "__main__":
    main()
