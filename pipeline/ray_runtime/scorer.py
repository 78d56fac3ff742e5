"""What one evaluation worker is; apart from `evaluate`, whose imports would cost each worker ten seconds of start."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch

from ast_core.evaluation.predictor import Predictor
from ast_core.shards.reader import ShardReader
from ast_core.storage.object_store import ObjectStore
from ast_core.weights.bundle import Bundle
from pipeline.run_folder import sync


@dataclass(frozen=True)
class Place:
    """Where a member's weights are."""

    bundle: Path
    number: int
    sha256: str


class Scorer:
    """One worker: some splits, and the member that it scored last.

    Args:
        shards: folder.
        splits: to score.
        stores: that its node's folders are working copies of.
    """

    def __init__(self, shards: Path, splits: tuple[str, ...], stores: tuple[ObjectStore, ...]) -> None:
        sync.attach_stores(stores)
        sync.download_shards(shards, splits)
        torch.set_num_threads(1)
        self._reader = ShardReader(shards, splits)
        self._loaded: tuple[Place, Predictor] | None = None

    @ray.method(concurrency_group="health", max_task_retries=0)
    def who(self) -> str:
        """Which process this is, also while it scores."""
        return f"process {os.getpid()} on {os.uname().nodename}"

    def score(self, place: Place, indices: np.ndarray) -> tuple[Place, np.ndarray, np.ndarray]:
        """What was asked, and those clips' probabilities by that member, float32 [len(indices), C]."""
        if self._loaded is None or self._loaded[0] != place:
            sync.download_files(place.bundle, ["*"])
            bundle = Bundle.load(place.bundle)
            single = dataclasses.replace(bundle, members=(bundle.members[place.number],))
            self._loaded = (place, Predictor(single, "cuda" if torch.cuda.is_available() else "cpu"))
        return (
            place,
            indices,
            self._loaded[1].from_fbank(self._reader.read(indices), self._reader.num_frames_N[indices]),
        )
