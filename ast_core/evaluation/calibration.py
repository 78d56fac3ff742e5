"""Fit of calibration and thresholds on clips that a model was not trained on.

Several labels: Platt scaling (1999) of each class, with Platt's targets, which keep a separable class finite; then the
threshold with the best F1. One label: one temperature (Guo, Pleiss, Sun and Weinberger, 2017).

Shapes: N clips, C classes, K pairs of a probability and its truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize

from ast_core.evaluation.thresholds import best_f1_threshold
from ast_core.weights.decisions import Decisions, evidence, from_evidence

FLATTEST, STEEPEST = 0.05, 20.0
"""Bounds of a slope; a negative slope would reverse the order of a class's scores."""
BINS = 15
"""Number of bins of the expected calibration error, as in Guo et al."""


def fit_decisions(
    scores_NC: np.ndarray, labels_NC: np.ndarray, one_label: bool, bundle_digest: str, fitted_on: Mapping[str, str]
) -> Decisions:
    """Fit calibration and thresholds.

    A class without a positive, or without a negative, keeps its probabilities and the threshold 0.5.

    Args:
        scores_NC: probabilities, float32.
        labels_NC: 1 where a clip has the class, else 0.
        one_label: whether a clip has exactly one label.
        bundle_digest: digest of the bundle that predicted the scores.
        fitted_on: data hash and split of the clips.
    """
    own = {"bundle_digest": bundle_digest, "fitted_on": dict(fitted_on), "one_label": one_label}
    classes = scores_NC.shape[1]
    evidence_NC = evidence(scores_NC, one_label)
    if one_label:
        slope = _fit_temperature(evidence_NC, labels_NC)
        return Decisions(
            **own, slope_C=(slope,) * classes, offset_C=(0.0,) * classes, threshold_C=(0.5,) * classes  # type: ignore[arg-type]
        )  # fmt: skip
    fits = [_fit_platt(evidence_NC[:, c], labels_NC[:, c] > 0.5) for c in range(classes)]
    slope_C, offset_C = (tuple(values) for values in zip(*fits, strict=True))
    calibrated_NC = from_evidence(evidence_NC * np.array(slope_C) + np.array(offset_C), one_label)
    thresholds = tuple(_choose_threshold(calibrated_NC[:, c], labels_NC[:, c] > 0.5) for c in range(classes))
    return Decisions(**own, slope_C=slope_C, offset_C=offset_C, threshold_C=thresholds)  # type: ignore[arg-type]


def _choose_threshold(calibrated_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Return the threshold of the best F1, moved halfway to the next lower score, so that it equals no clip's score."""
    lowest = best_f1_threshold(calibrated_N, positive_N).threshold
    if math.isnan(lowest):
        return 0.5
    return (lowest + float(calibrated_N[calibrated_N < lowest].max(initial=0.0))) / 2


def _fit_platt(logit_N: np.ndarray, positive_N: np.ndarray) -> tuple[float, float]:
    """Return slope and offset of one class's logits."""
    positives, clips = int(positive_N.sum()), len(positive_N)
    if not 0 < positives < clips:
        return 1.0, 0.0
    target_N = np.where(positive_N, (positives + 1) / (positives + 2), 1 / (clips - positives + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z_N = line[0] * logit_N + line[1]
        error_N = 0.5 + 0.5 * np.tanh(z_N / 2) - target_N
        value = np.logaddexp(0, z_N).mean() - (target_N * z_N).mean()
        return float(value), np.array([(error_N * logit_N).mean(), error_N.mean()])

    found = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=((FLATTEST, STEEPEST), (None, None)))
    return float(found.x[0]), float(found.x[1])


def _fit_temperature(log_NC: np.ndarray, labels_NC: np.ndarray) -> float:
    """Return one over the temperature that minimises the cross-entropy."""

    def loss(slope: np.ndarray) -> float:
        scaled_NC = slope[0] * log_NC
        total_N = np.logaddexp.reduce(scaled_NC, axis=1)
        return float((total_N - (scaled_NC * labels_NC).sum(axis=1)).mean())

    return float(minimize(loss, (1.0,), method="L-BFGS-B", bounds=((FLATTEST, STEEPEST),)).x[0])


def calibration_error(scores_NC: np.ndarray, labels_NC: np.ndarray, one_label: bool) -> float:
    """Return the expected calibration error: the mean gap between probability and frequency over bins of equal width.

    With one label it covers the most probable class of each clip; otherwise every class of every clip.
    """
    if one_label:
        predicted_K = scores_NC.max(axis=1)
        true_K = labels_NC[np.arange(len(labels_NC)), scores_NC.argmax(axis=1)]
    else:
        predicted_K, true_K = scores_NC.ravel(), labels_NC.ravel()
    bin_K = np.minimum((predicted_K * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bin_K, predicted_K.astype(np.float64) - true_K, BINS)
    return float(np.abs(gaps).sum() / len(predicted_K))


def f1_scores(decided_NC: np.ndarray, labels_NC: np.ndarray) -> tuple[float, float]:
    """Return micro and macro F1 of decisions; the macro F1 is over the classes that have a positive, as mAP is."""
    true_NC = labels_NC > 0.5
    hits_C, decided_C, true_C = (decided_NC & true_NC).sum(0), decided_NC.sum(0), true_NC.sum(0)
    known_C = true_C > 0
    macro = (2 * hits_C / np.maximum(decided_C + true_C, 1))[known_C].mean() if known_C.any() else math.nan
    return float(2 * hits_C.sum() / max(int(decided_C.sum() + true_C.sum()), 1)), float(macro)
