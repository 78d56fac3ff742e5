"""k-nearest neighbours by cosine similarity: what the embeddings say without any training.

A class's score is the share of a clip's k nearest training clips that have it, each weighted by `(1 + cosine) / 2`, as
`sklearn.neighbors.KNeighborsClassifier(metric="cosine", weights=lambda distance: 1 - distance / 2)` computes it.

Shapes: N clips, Q clips that are asked for, B clips of a block, E features, C classes, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_core.probing.linear_probe import BLOCK, ReadRows
from ast_core.shards.sparse_labels import SparseLabels

ASKED_AT_ONCE = 1024
"""Clips that are compared with a block of training clips at a time: 32 MB of similarities."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training clips of some clips, the nearest first."""

    index_QK: npt.NDArray[np.int64]
    """Indices of the training clips."""
    cosine_QK: npt.NDArray[np.float32]
    """Cosine similarities."""

    def scores(self, labels: SparseLabels, k: int) -> npt.NDArray[np.float32]:
        """Return the scores of the first k neighbours, float32 [Q, C].

        Args:
            labels: labels of all clips.
            k: number of neighbours, at most K.
        """
        weight_QK = (1 + self.cosine_QK[:, :k]) / 2
        weight_QK = weight_QK / np.maximum(weight_QK.sum(axis=1, keepdims=True), 1e-12)
        scores_QC = np.zeros((len(weight_QK), labels.classes), np.float32)
        for n in range(weight_QK.shape[1]):
            scores_QC += weight_QK[:, n, None] * labels.rows(self.index_QK[:, n])
        return scores_QC


def find_neighbours(read: ReadRows, training_N: np.ndarray, asked_Q: np.ndarray, most: int) -> Neighbours:
    """Find the nearest training clips of some clips by cosine similarity.

    Args:
        read: reader of the embeddings, which need not have length 1.
        training_N: indices of the training clips.
        asked_Q: indices of the clips whose neighbours to find.
        most: number of neighbours, at most the number of training clips.

    Returns:
        The neighbours; with equal similarities, the clip with the lower index first.
    """
    most = min(most, len(training_N))
    found = [_find_block(read, training_N, asked_Q[first : first + ASKED_AT_ONCE], most)
             for first in range(0, len(asked_Q), ASKED_AT_ONCE)]  # fmt: skip
    index = [np.empty((0, most), np.int64), *(own.index_QK for own in found)]
    cosine = [np.empty((0, most), np.float32), *(own.cosine_QK for own in found)]
    return Neighbours(np.concatenate(index), np.concatenate(cosine))


def _find_block(read: ReadRows, training_N: np.ndarray, asked_B: np.ndarray, most: int) -> Neighbours:
    asked_BE = _to_unit_length(read(asked_B))
    index_BK, cosine_BK = np.empty((len(asked_B), 0), np.int64), np.empty((len(asked_B), 0), np.float32)
    for first in range(0, len(training_N), BLOCK):
        rows = training_N[first : first + BLOCK]
        cosine_BT = asked_BE @ _to_unit_length(read(rows)).T
        index_BK = np.concatenate([index_BK, np.broadcast_to(rows, cosine_BT.shape)], axis=1)
        cosine_BK = np.concatenate([cosine_BK, cosine_BT], axis=1)
        if cosine_BK.shape[1] > most:
            kept = np.argpartition(-cosine_BK, most - 1, axis=1)[:, :most]
            index_BK, cosine_BK = np.take_along_axis(index_BK, kept, 1), np.take_along_axis(cosine_BK, kept, 1)
    order = np.lexsort((index_BK, -cosine_BK), axis=1)
    return Neighbours(np.take_along_axis(index_BK, order, 1), np.take_along_axis(cosine_BK, order, 1))


def _to_unit_length(embeddings_BE: np.ndarray) -> npt.NDArray[np.float32]:
    length_B1 = np.linalg.norm(embeddings_BE, axis=1, keepdims=True)
    unit_BE: npt.NDArray[np.float32] = (embeddings_BE / np.maximum(length_B1, 1e-12)).astype(np.float32)
    return unit_BE
