"""Where to cut a class's probabilities: the threshold of the best F1 on a test.

Shapes: N clips, K different scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gives on the clips it was chosen on; all NaN for a class without a positive."""

    threshold: float
    """A clip has the class if its score is at least this."""
    precision: float
    recall: float
    f1: float


def best_f1_threshold(scores_N: np.ndarray, positive_N: np.ndarray) -> OperatingPoint:
    """The threshold of the highest F1, and the highest such threshold if there are several.

    Args:
        scores_N: finite scores.
        positive_N: whether a clip has the class.
    """
    positives = int(positive_N.sum())
    if not positives:
        return OperatingPoint(math.nan, math.nan, math.nan, math.nan)
    order_N = np.argsort(-scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    # A threshold takes all clips of one score or none: only the last of equal scores is an end.
    ends_K = np.flatnonzero(np.append(sorted_N[1:] < sorted_N[:-1], True))
    hits_K = np.cumsum(positive_N[order_N])[ends_K]
    f1_K = 2 * hits_K / (ends_K + 1 + positives)
    best = int(f1_K.argmax())
    end = int(ends_K[best])
    return OperatingPoint(
        float(sorted_N[end]), float(hits_K[best] / (end + 1)), float(hits_K[best] / positives), float(f1_K[best])
    )
