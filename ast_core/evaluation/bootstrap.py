"""Confidence intervals of metrics: percentile bootstrap over clips (Efron 1979), without a sort for each resample.

A resample is a count for each clip. Each class is sorted once. Average precision and AUC of every resample then follow
from sums of counts between the positions where the scores of the class's positives begin and end.

Shapes: N clips, C classes, B resamples at a time, K different scores that a class's positives have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_core.evaluation.metrics import d_prime

Intervals = dict[str, tuple[float, float]]
"""Lower and upper end by metric."""
SEED = 0
"""Seed of the resamples: the same scores always return the same intervals."""
_AT_ONCE = 64  # resamples at a time: a class of 20,000 clips then needs 5 MB, which fits into a cache


@dataclass(frozen=True)
class _Class:
    """Clips of a class, sorted from the highest score to the lowest."""

    order_N: npt.NDArray[np.int64]
    """Indices of the clips in sorted order."""
    bounds_2K: npt.NDArray[np.int64]
    """Positions in the sorted order at which each score that a positive has begins and ends."""
    positive_N: npt.NDArray[np.bool_]
    """Whether the clip has the class, in sorted order."""

    def metrics(self, counts_NB: npt.NDArray[np.int32]) -> tuple[np.ndarray, np.ndarray]:
        """Return average precision and AUC of each resample, float64 [B]; NaN where a metric is undefined."""
        sorted_NB = counts_NB[self.order_N]
        total_B = sorted_NB.sum(axis=0, dtype=np.int64)
        all_KB, before_KB = self._in_and_before(sorted_NB)
        own_KB, own_before_KB = self._in_and_before(np.where(self.positive_N[:, None], sorted_NB, 0))
        positives_B = own_KB.sum(axis=0)
        negatives_B = total_B - positives_B
        with np.errstate(invalid="ignore", divide="ignore"):
            precision_KB = (own_before_KB + own_KB) / np.maximum(before_KB + all_KB, 1)
            precision_B = (own_KB * precision_KB).sum(axis=0) / positives_B
            tied_KB = all_KB - own_KB
            below_KB = negatives_B - (before_KB - own_before_KB) - tied_KB
            auc_B = (own_KB * (2 * below_KB + tied_KB)).sum(axis=0) / (2 * positives_B * negatives_B)
        return precision_B, auc_B

    def _in_and_before(self, sorted_NB: npt.NDArray[np.int32]) -> tuple[np.ndarray, np.ndarray]:
        """Count the clips that have each of the K scores, and those with a higher score, int64 [K, B]."""
        if not len(self.bounds_2K):
            nothing = np.zeros((0, sorted_NB.shape[1]), np.int64)
            return nothing, nothing
        above_1B = sorted_NB[: self.bounds_2K[0]].sum(axis=0, dtype=np.int64)[None]
        # reduceat needs indices inside the array: with a row of zeros, the last score may end after the last clip.
        padded_NB = np.concatenate([sorted_NB, np.zeros_like(sorted_NB[:1])])
        sums_2KB = np.add.reduceat(padded_NB, self.bounds_2K, axis=0).astype(np.int64)
        sums_2KB[:-1][np.diff(self.bounds_2K) == 0] = 0  # reduceat returns the first row for an empty span
        sums_2KB[-1] = 0
        until_2KB = np.concatenate([above_1B, above_1B + np.cumsum(sums_2KB, axis=0)])
        return sums_2KB[::2], until_2KB[:-1:2]


def bootstrap_intervals(
    scores_NC: np.ndarray, labels_NC: np.ndarray, single_label: bool, resamples: int, share: float = 0.95
) -> Intervals:
    """Return intervals of the metrics of `evaluate_scores` over resamples of the clips, drawn with replacement.

    In each resample the mean is over the classes whose metric is defined there.

    Args:
        scores_NC: finite scores.
        labels_NC: 1 where a clip has the class, else 0.
        single_label: whether a clip has exactly one label; only then an accuracy exists.
        resamples: number of resamples; 1000 is usual.
        share: share of the resamples that lie in an interval.

    Returns:
        Lower and upper end of `mAP`, `mAUC`, `d_prime`, and of `accuracy` for single labels. An interval is NaN if the
        metric is undefined in every resample. The result is empty without clips.
    """
    if not len(scores_NC):
        return {}
    classes = [_sort_class(scores_NC[:, c], labels_NC[:, c] > 0.5) for c in range(scores_NC.shape[1])]
    right_N = scores_NC.argmax(axis=1) == labels_NC.argmax(axis=1)
    values: dict[str, list[np.ndarray]] = {key: [] for key in ("mAP", "mAUC", "accuracy")[: 3 if single_label else 2]}
    for counts_NB in _draw_resamples(len(scores_NC), resamples):
        by_class = [one.metrics(counts_NB) for one in classes]
        values["mAP"].append(_mean_over_classes([precision_B for precision_B, _ in by_class]))
        values["mAUC"].append(_mean_over_classes([auc_B for _, auc_B in by_class]))
        if single_label:
            values["accuracy"].append(right_N @ counts_NB / len(right_N))
    drawn = {key: np.concatenate(rows) for key, rows in values.items()}
    drawn["d_prime"] = np.array([d_prime(float(auc)) for auc in drawn["mAUC"]])
    return {key: _compute_interval(values_R, share) for key, values_R in drawn.items()}


def _sort_class(scores_N: np.ndarray, positive_N: np.ndarray) -> _Class:
    order_N = np.argsort(-scores_N, kind="stable")
    descending_N = -scores_N[order_N]
    held_K = np.unique(-scores_N[positive_N])
    begin_K = np.searchsorted(descending_N, held_K, "left")
    end_K = np.searchsorted(descending_N, held_K, "right")
    return _Class(order_N, np.stack([begin_K, end_K], axis=1).ravel(), positive_N[order_N])


def _draw_resamples(clips: int, resamples: int) -> Iterator[npt.NDArray[np.int32]]:
    """Yield how often each clip is drawn, int32 [N, B], for `_AT_ONCE` resamples at a time."""
    rng = np.random.default_rng(SEED)
    for first in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - first)
        counts = [np.bincount(rng.integers(clips, size=clips), minlength=clips) for _ in range(size)]
        yield np.stack(counts, axis=1).astype(np.int32)


def _mean_over_classes(rows: list[np.ndarray]) -> np.ndarray:
    """Return the mean over the classes whose metric is defined, [B]; NaN where no class has one."""
    values_CB = np.stack(rows)
    known_CB = ~np.isnan(values_CB)
    with np.errstate(invalid="ignore"):
        mean_B: np.ndarray = np.where(known_CB, values_CB, 0).sum(axis=0) / known_CB.sum(axis=0)
    return mean_B


def _compute_interval(values_R: np.ndarray, share: float) -> tuple[float, float]:
    """Return the two quantiles; each is one of the values, because d' may be infinite and cannot be interpolated."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return math.nan, math.nan
    ends = np.quantile(known, [(1 - share) / 2, (1 + share) / 2], method="nearest")
    return float(ends[0]), float(ends[1])
