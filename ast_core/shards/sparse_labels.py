"""Labels of many clips without a dense matrix: AudioSet's two million rows of 527 classes would take a gigabyte.

Shapes: N clips, B a batch of them, C classes, L labels of all clips together.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa


class TargetRows(Protocol):
    """Training targets, which are read for one batch at a time."""

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the targets of some clips in the given order, [B, C]."""


class SparseLabels:
    """Labels of N clips as compressed sparse rows.

    Args:
        indptr_N1: where each clip's labels begin in `label_L`, and L at the end, int64 [N + 1].
        label_L: indices of the labels, ascending for each clip, int32.
        classes: number of classes.

    Raises:
        ValueError: a label is not one of the classes, or the labels of a clip are not ascending.
    """

    def __init__(self, indptr_N1: np.ndarray, label_L: np.ndarray, classes: int) -> None:
        self._indptr_N1, self._label_L, self.classes = indptr_N1, label_L, classes
        if indptr_N1[0] != 0 or indptr_N1[-1] != len(label_L) or (np.diff(indptr_N1) < 0).any():
            raise ValueError("its lists of labels do not fit together")
        if len(label_L) and not 0 <= int(label_L.min()) <= int(label_L.max()) < classes:
            raise ValueError(f"its labels {label_L.min()} to {label_L.max()} are not all in 0 to {classes - 1}")
        ascending = np.diff(label_L) > 0
        first = indptr_N1[1:-1]
        ascending[first[(first > 0) & (first < len(label_L))] - 1] = True  # the next clip begins with any label
        if not ascending.all():
            raise ValueError("the labels of a clip are not ascending")

    @staticmethod
    def from_dense(labels_NC: np.ndarray) -> SparseLabels:
        """Return the labels of a matrix that has a value other than 0 where a clip has the class."""
        row_L, label_L = np.nonzero(labels_NC)
        indptr_N1 = np.searchsorted(row_L, np.arange(len(labels_NC) + 1))
        return SparseLabels(indptr_N1.astype(np.int64), label_L.astype(np.int32), labels_NC.shape[1])

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._indptr_N1) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Number of clips and of classes."""
        return len(self), self.classes

    @property
    def count_N(self) -> np.ndarray:
        """Number of labels of each clip, int64."""
        counts: np.ndarray = np.diff(self._indptr_N1)
        return counts

    @property
    def count_C(self) -> np.ndarray:
        """Number of clips of each class, int64."""
        return np.bincount(self._label_L, minlength=self.classes)

    def of_clip(self, index: int) -> np.ndarray:
        """Return the labels of one clip, ascending, int32."""
        labels: np.ndarray = self._label_L[self._indptr_N1[index] : self._indptr_N1[index + 1]]
        return labels

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return dense rows of some clips in the given order: 1 where a clip has the class, else 0, uint8 [B, C]."""
        first_B = self._indptr_N1[indices]
        count_B = self._indptr_N1[np.asarray(indices) + 1] - first_B
        place_L = np.arange(count_B.sum()) + np.repeat(first_B - np.cumsum(count_B) + count_B, count_B)
        rows_BC = np.zeros((len(first_B), self.classes), np.uint8)
        rows_BC[np.repeat(np.arange(len(first_B)), count_B), self._label_L[place_L]] = 1
        return rows_BC

    def to_dense(self) -> np.ndarray:
        """Return the rows of all clips, uint8 [N, C]."""
        return self.rows(np.arange(len(self)))

    def to_arrow(self) -> pa.LargeListArray[Any]:
        """Return the labels as a list of int32 for each clip; it shares their memory."""
        return pa.LargeListArray.from_arrays(pa.array(self._indptr_N1), pa.array(self._label_L))
