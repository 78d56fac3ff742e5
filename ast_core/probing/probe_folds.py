"""Parts of the training clips that are held out in turn to choose a setting, if there is no validation split.

Shapes: N clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_core.shards.sparse_labels import SparseLabels

FOLDS = 5
"""Folds of the training clips."""
ENOUGH = 20_000
"""Number of training clips from which one fold is held out, not each in turn: it is large enough to choose by."""
LARGEST_RATIO = 2.0
"""Training splits are used as folds if the largest one has at most this many times the clips of the smallest."""
NAMED_SPLITS = {"train", "validation", "test", "eval"}
"""Names of splits that are no folds of a cross-validation."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Clips to fit on, and clips that are held out."""

    fit_N: npt.NDArray[np.int64]
    held_N: npt.NDArray[np.int64]


def are_folds(sizes: dict[str, int]) -> bool:
    """Return whether splits are the folds of a cross-validation, by their names and numbers of clips."""
    if len(sizes) < 2 or NAMED_SPLITS & set(sizes):
        return False
    return 0 < max(sizes.values()) <= LARGEST_RATIO * min(sizes.values())


def place_in_folds(
    rows_N: npt.NDArray[np.int64], labels: SparseLabels, splits: Sequence[str], groups: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Return the fold of each clip, int64 [N]: its split, if the splits are folds, else that of `stratify`."""
    names, fold_N = np.unique(np.array(splits), return_inverse=True)
    sizes = dict(zip(map(str, names), np.bincount(fold_N).tolist(), strict=True))
    return fold_N if are_folds(sizes) else stratify(rows_N, labels, groups)


def partition_clips(
    rows_N: npt.NDArray[np.int64], labels: SparseLabels, splits: Sequence[str], groups: Sequence[str]
) -> tuple[Partition, ...]:
    """Cut training clips into folds, and hold each one out in turn.

    The folds are those of `place_in_folds`. If stratified, each class is spread over five folds, and the clips of
    a group stay together. Of many clips only one fold is held out.

    Args:
        rows_N: indices of the training clips.
        labels: labels of all clips.
        splits: split of each of the training clips.
        groups: group of each of the training clips, or its id if it has no group.

    Returns:
        The partitions; none if no class has clips of two groups, so that nothing can be held out.
    """
    fold_N = place_in_folds(rows_N, labels, splits, groups)
    held = range(int(fold_N.max(initial=-1)) + 1)
    if len(rows_N) >= ENOUGH:
        held = held[:1]
    return tuple(Partition(rows_N[fold_N != fold], rows_N[fold_N == fold]) for fold in held)


def stratify(rows_N: npt.NDArray[np.int64], labels: SparseLabels, groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the fold of each clip, int64 [N]; an empty array if no class has clips of two groups.

    The rarest class is spread first. Its groups go, in the order of their hashes, to the fold that has the fewest clips
    of the class, then the fewest clips. The result depends on the groups' names, not on the order of the clips.
    """
    members: dict[str, list[int]] = {}
    for n, group in enumerate(groups):
        members.setdefault(group, []).append(n)
    units = [
        _Unit(
            hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest(), np.array(own), labels.rows(rows_N[own])
        )
        for group, own in members.items()
    ]
    units.sort(key=lambda unit: unit.order)
    by_class: dict[int, list[_Unit]] = {}
    for unit in units:
        for label in np.flatnonzero(unit.count_C):
            by_class.setdefault(int(label), []).append(unit)
    most = max(map(len, by_class.values()), default=0)
    if most < 2:
        return np.empty(0, np.int64)
    return _spread(units, by_class, min(FOLDS, most), labels.classes, len(rows_N))


class _Unit:
    """The clips of one group, which share a fold.

    Args:
        order: hash of the group's name.
        places_N: places of its clips among the training clips.
        labels_NC: their labels.
    """

    __slots__ = ("count_C", "order", "places_N")

    def __init__(self, order: bytes, places_N: np.ndarray, labels_NC: np.ndarray) -> None:
        self.order, self.places_N = order, places_N
        self.count_C = labels_NC.sum(axis=0, dtype=np.int64)


def _spread(
    units: Sequence[_Unit], by_class: dict[int, list[_Unit]], folds: int, classes: int, clips: int
) -> npt.NDArray[np.int64]:
    """Place the units of each class, the rarest first, and those without a class; return each clip's fold."""
    fold_N = np.full(clips, -1, np.int64)
    clips_FC, clips_F = np.zeros((folds, classes), np.int64), np.zeros(folds, np.int64)
    nothing_F = np.zeros(folds, np.int64)
    rarest_first = sorted(by_class, key=lambda label: (len(by_class[label]), label))
    todo = [(unit, clips_FC[:, label]) for label in rarest_first for unit in by_class[label]]
    for unit, own_F in [*todo, *((unit, nothing_F) for unit in units)]:
        if fold_N[unit.places_N[0]] < 0:
            fold = int(np.lexsort((clips_F, own_F))[0])
            fold_N[unit.places_N] = fold
            clips_F[fold] += len(unit.places_N)
            clips_FC[fold] += unit.count_C
    return fold_N
