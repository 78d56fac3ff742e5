"""The actor of one evaluation worker; apart from `evaluate`, whose imports would cost each worker ten seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ast_core.evaluation.predictor import Predictor
from ast_core.shards.reader import ShardReader
from ast_core.storage.object_store import ObjectStore
from ast_core.weights.bundle import Bundle
from pipeline.ray_runtime.heartbeat import start_heartbeat
from pipeline.run_folder import downloads, sync


@dataclass(frozen=True)
class MemberWeights:
    """Location of a member's weights."""

    bundle: Path
    number: int
    """Position of the member in the bundle."""
    sha256: str


class Scorer:
    """An evaluation worker: it holds some splits, and the member that it scored last.

    Args:
        watch: name of the driver's `LivenessWatch`.
        shards: folder of the shards.
        splits: splits to score.
        stores: stores of which the node's folders become working copies.
    """

    def __init__(self, watch: str, shards: Path, splits: tuple[str, ...], stores: tuple[ObjectStore, ...]) -> None:
        start_heartbeat(watch, "scorer")
        sync.attach_stores(stores)
        downloads.download_shards(shards, splits)
        torch.set_num_threads(1)
        self._reader = ShardReader(shards, splits)
        self._loaded: tuple[MemberWeights, Predictor] | None = None

    def score(self, member: MemberWeights, indices: np.ndarray) -> tuple[MemberWeights, np.ndarray, np.ndarray]:
        """Return both arguments and those clips' probabilities by that member, float32 [len(indices), C]."""
        if self._loaded is None or self._loaded[0] != member:
            downloads.download_files(member.bundle, ["*"])
            bundle = Bundle.load(member.bundle)
            single = dataclasses.replace(bundle, members=(bundle.members[member.number],))
            self._loaded = (member, Predictor(single, "cuda" if torch.cuda.is_available() else "cpu"))
        return (
            member,
            indices,
            self._loaded[1].from_fbank(self._reader.read(indices), self._reader.num_frames_N[indices]),
        )
