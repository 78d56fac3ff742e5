"""Threshold of a class's probabilities that has the best F1 on a test.

Shapes: N clips, K different scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OperatingPoint:
    """Threshold and its metrics on the clips that it was chosen on; all NaN for a class without a positive."""

    threshold: float
    """Lowest score at which a clip has the class."""
    precision: float
    """Share of positives among the clips at or above the threshold."""
    recall: float
    """Share of the positives that are at or above the threshold."""
    f1: float
    """Harmonic mean of precision and recall."""


def best_f1_threshold(scores_N: np.ndarray, positive_N: np.ndarray) -> OperatingPoint:
    """Return the threshold with the highest F1; the highest such threshold if there are several.

    Args:
        scores_N: finite scores.
        positive_N: whether a clip has the class.
    """
    positives = int(positive_N.sum())
    if not positives:
        return OperatingPoint(math.nan, math.nan, math.nan, math.nan)
    order_N = np.argsort(-scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    # A threshold cannot separate equal scores: only the last clip of equal scores can be the last one above it.
    ends_K = np.flatnonzero(np.append(sorted_N[1:] < sorted_N[:-1], True))
    hits_K = np.cumsum(positive_N[order_N])[ends_K]
    f1_K = 2 * hits_K / (ends_K + 1 + positives)
    best = int(f1_K.argmax())
    end = int(ends_K[best])
    return OperatingPoint(
        float(sorted_N[end]), float(hits_K[best] / (end + 1)), float(hits_K[best] / positives), float(f1_K[best])
    )
