"""Metrics of a test: mAP, AUC, d' and accuracy.

They equal scikit-learn's, ties included. Sorting takes the place of curves, which makes them faster.

Shapes: N clips, C classes, P positives of a class.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def average_precision_C(scores_NC: np.ndarray, labels_NC: np.ndarray) -> Floats:
    """Return the average precision of each class, as `sklearn.metrics.average_precision_score` defines it.

    Args:
        scores_NC: finite scores.
        labels_NC: 1 where a clip has the class, else 0.

    Returns:
        float64 [C]; NaN for a class without a positive.

    Raises:
        ValueError: shapes differ, or a score is not finite.
    """
    return _compute_both(scores_NC, labels_NC)[0]


def roc_auc_C(scores_NC: np.ndarray, labels_NC: np.ndarray) -> Floats:
    """Return the area under each class's ROC curve, as `sklearn.metrics.roc_auc_score` defines it.

    Args:
        scores_NC: finite scores.
        labels_NC: 1 where a clip has the class, else 0.

    Returns:
        float64 [C]; NaN for a class without a positive, or without a negative.

    Raises:
        ValueError: shapes differ, or a score is not finite.
    """
    return _compute_both(scores_NC, labels_NC)[1]


def d_prime(mean_auc: float) -> float:
    """Return the separation of two unit normals with that AUC, `sqrt(2) * Phi^-1(AUC)`.

    It is infinite at 0 and 1, and NaN for NaN.
    """
    if math.isnan(mean_auc) or not 0 < mean_auc < 1:
        return math.nan if math.isnan(mean_auc) else math.copysign(math.inf, mean_auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(mean_auc)


def accuracy(scores_NC: np.ndarray, labels_NC: np.ndarray) -> float:
    """Return the share of clips whose highest score is at their label; NaN without clips."""
    if not len(scores_NC):
        return math.nan
    return float(np.mean(scores_NC.argmax(axis=1) == labels_NC.argmax(axis=1)))


def headline_metric(single_label: bool) -> str:
    """Return the name of the metric that stands for a result: accuracy if every clip has one label, else mAP."""
    return "accuracy" if single_label else "mAP"


def evaluate_scores(scores_NC: np.ndarray, labels_NC: np.ndarray, single_label: bool) -> dict[str, float]:
    """Return the metrics of a test, and the values that random scores would reach.

    Args:
        scores_NC: finite scores.
        labels_NC: 1 where a clip has the class, else 0.
        single_label: whether a clip has exactly one label; only then an accuracy exists.

    Returns:
        `mAP` and `mAUC`, means over the classes for which they are defined; `d_prime` of mAUC; `chance_mAP`, the mean
        share of positives over the classes of mAP; for single labels also `accuracy` and `chance_accuracy`, the share
        of the most frequent class.

    Raises:
        ValueError: shapes differ, or a score is not finite.
    """
    precision_C, auc_C = _compute_both(scores_NC, labels_NC)
    share_C = (labels_NC > 0.5).mean(axis=0) if len(labels_NC) else np.zeros(labels_NC.shape[1])
    mean_auc = _mean(auc_C)
    result = {
        "mAP": _mean(precision_C),
        "mAUC": mean_auc,
        "d_prime": d_prime(mean_auc),
        "chance_mAP": _mean(share_C[~np.isnan(precision_C)]),
    }
    if single_label:
        result["accuracy"] = accuracy(scores_NC, labels_NC)
        result["chance_accuracy"] = float(share_C.max(initial=0.0))
    return result


def _compute_both(scores_NC: np.ndarray, labels_NC: np.ndarray) -> tuple[Floats, Floats]:
    """Return average precision and AUC of each class."""
    if scores_NC.shape != labels_NC.shape or scores_NC.ndim != 2:
        raise ValueError(f"Scores {scores_NC.shape} and labels {labels_NC.shape} must have the same shape [N, C].")
    finite_NC = np.isfinite(scores_NC)
    if not finite_NC.all():
        bad = int((~finite_NC).any(axis=1).sum())
        raise ValueError(f"Scores of {bad} of {len(scores_NC)} clips are not finite.")
    classes = scores_NC.shape[1]
    scores_CN = np.ascontiguousarray(scores_NC.T)
    positive_CN = np.ascontiguousarray(labels_NC.T) > 0.5
    precision_C, auc_C = np.full(classes, np.nan), np.full(classes, np.nan)
    for c in range(classes):
        precision_C[c], auc_C[c] = _compute_class(scores_CN[c], positive_CN[c])
    return precision_C, auc_C


def _compute_class(scores_N: np.ndarray, positive_N: np.ndarray) -> tuple[float, float]:
    """Return average precision and AUC of one class.

    Precision is taken at the end of each group of equal scores; a tie counts half for the AUC.
    """
    sorted_P = np.sort(scores_N[positive_N])
    positives, negatives = len(sorted_P), len(scores_N) - len(sorted_P)
    if not positives:
        return math.nan, math.nan
    sorted_N = np.sort(scores_N)
    below_P = np.searchsorted(sorted_N, sorted_P, "left")
    own_below_P = np.searchsorted(sorted_P, sorted_P, "left")
    precision = float(np.mean((positives - own_below_P) / (len(scores_N) - below_P)))
    if not negatives:
        return precision, math.nan
    not_above_P = np.searchsorted(sorted_N, sorted_P, "right")
    own_not_above_P = np.searchsorted(sorted_P, sorted_P, "right")
    twice = int((below_P - own_below_P).sum() + (not_above_P - own_not_above_P).sum())
    return precision, twice / (2 * positives * negatives)


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN without such a value."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
