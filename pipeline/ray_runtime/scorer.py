"""The actor of one evaluation worker; apart from `evaluate`, whose imports would cost each worker ten seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_core.evaluation.predictor import Predictor
from ast_core.shards.reader import ShardReader
from ast_core.storage.object_store import ObjectStore
from ast_core.weights.bundle import Bundle
from pipeline.cli.gpu_choice import Gpus
from pipeline.run_folder import downloads, sync
from pipeline.scoring.model_worker import ModelWorker


@dataclass(frozen=True)
class MemberWeights:
    """Location of a member's weights."""

    bundle: Path
    number: int
    """Position of the member in the bundle."""
    sha256: str


class Scorer(ModelWorker):
    """An evaluation worker: it holds some splits, and the member that it scored last.

    Args:
        watch: name of the driver's `LivenessWatch`.
        shards: folder of the shards.
        splits: splits to score.
        stores: stores of which the node's folders become working copies.
        gpus: value of `--gpus`.
    """

    def __init__(
        self, watch: str, shards: Path, splits: tuple[str, ...], stores: tuple[ObjectStore, ...], gpus: Gpus
    ) -> None:
        super().__init__(watch, "scorer", gpus)
        sync.attach_stores(stores)
        downloads.download_shards(shards, splits)
        self._reader = ShardReader(shards, splits)
        self._loaded: tuple[MemberWeights, Predictor] | None = None

    def is_ready(self) -> None:
        """Return once this worker runs; the driver gives work only to workers that do."""

    def score(self, member: MemberWeights, indices: np.ndarray) -> tuple[MemberWeights, np.ndarray, np.ndarray]:
        """Return both arguments and those clips' probabilities by that member, float32 [len(indices), C].

        Raises:
            UserError: the bundle is damaged, or `--gpus` is `yes` and torch finds no GPU on this node.
        """
        if self._loaded is None or self._loaded[0] != member:
            downloads.download_files(member.bundle, ["*"])
            bundle = Bundle.load(member.bundle)
            single = dataclasses.replace(bundle, members=(bundle.members[member.number],))
            self._loaded = (member, self.place(single))
        return (
            member,
            indices,
            self._loaded[1].from_fbank(self._reader.read(indices), self._reader.num_frames_N[indices]),
        )
