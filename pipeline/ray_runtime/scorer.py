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
from pipeline.cli.gpu_choice import Gpus
from pipeline.ray_runtime.heartbeat import start_heartbeat
from pipeline.run_folder import downloads, sync
from pipeline.scoring.device import choose_device


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
        gpus: value of `--gpus`.
    """

    def __init__(
        self, watch: str, shards: Path, splits: tuple[str, ...], stores: tuple[ObjectStore, ...], gpus: Gpus
    ) -> None:
        start_heartbeat(watch, "scorer")
        sync.attach_stores(stores)
        downloads.download_shards(shards, splits)
        torch.set_num_threads(1)
        self._reader = ShardReader(shards, splits)
        self._loaded: tuple[MemberWeights, Predictor] | None = None
        self._gpus: Gpus = gpus

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
            self._loaded = (member, Predictor(single, choose_device(self._gpus)))
        return (
            member,
            indices,
            self._loaded[1].from_fbank(self._reader.read(indices), self._reader.num_frames_N[indices]),
        )
