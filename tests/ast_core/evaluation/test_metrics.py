"""Metrics against scikit-learn on random scores, with and without ties."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_core.evaluation.metrics import accuracy, average_precision_C, d_prime, evaluate_scores, roc_auc_C


def make_case(seed: int, clips: int, classes: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of at most `steps` values (0: any value) and labels; some classes have no positive."""
    rng = np.random.default_rng(seed)
    scores_NC = rng.random((clips, classes), dtype=np.float32)
    if steps:
        scores_NC = np.floor(scores_NC * steps) / np.float32(steps)
    return scores_NC, (rng.random((clips, classes)) < rng.random(classes)).astype(np.float32)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 5), st.sampled_from([0, 1, 2, 5]))
@settings(deadline=None)
def test_average_precision_and_auc_equal_scikit_learn(seed: int, clips: int, classes: int, steps: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score  # noqa: PLC0415  # seconds, in each process that collects the tests

    scores_NC, labels_NC = make_case(seed, clips, classes, steps)
    precision_C, auc_C = average_precision_C(scores_NC, labels_NC), roc_auc_C(scores_NC, labels_NC)
    for c in range(classes):
        positives = labels_NC[:, c].sum()
        if not positives:
            assert math.isnan(precision_C[c])
            assert math.isnan(auc_C[c])
            continue
        assert precision_C[c] == pytest.approx(average_precision_score(labels_NC[:, c], scores_NC[:, c]), abs=1e-12)
        if positives == clips:
            assert math.isnan(auc_C[c])
        else:
            assert auc_C[c] == pytest.approx(roc_auc_score(labels_NC[:, c], scores_NC[:, c]), abs=1e-12)


def test_many_clips_equal_scikit_learn_and_are_faster() -> None:
    from sklearn.metrics import average_precision_score  # noqa: PLC0415  # seconds, in each process that collects the tests

    scores_NC, labels_NC = make_case(0, 5000, 40, 0)
    started = time.process_time()
    ours = average_precision_C(scores_NC, labels_NC)
    own_seconds = time.process_time() - started
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = average_precision_score(labels_NC, scores_NC, average=None)
    known_C = labels_NC.any(axis=0)
    assert (np.isnan(ours) == ~known_C).all()
    assert np.abs(ours - theirs)[known_C].max() < 1e-12
    assert own_seconds < time.process_time() - started


def test_d_prime_of_known_areas() -> None:
    assert d_prime(0.5) == pytest.approx(0, abs=1e-12)
    assert d_prime(0.9) == pytest.approx(math.sqrt(2) * 1.2815515655446004, abs=1e-12)
    assert (d_prime(1.0), d_prime(0.0)) == (math.inf, -math.inf)
    assert math.isnan(d_prime(math.nan))


def test_single_label_scores_have_accuracy_and_chance_accuracy() -> None:
    labels_NC = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    result = evaluate_scores(labels_NC[[0, 2, 2, 3]], labels_NC, single_label=True)
    assert (result["accuracy"], result["chance_accuracy"]) == (0.75, 0.5)
    assert result["chance_mAP"] == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert "accuracy" not in evaluate_scores(labels_NC, labels_NC, single_label=False)
    assert accuracy(labels_NC, labels_NC) == 1.0


def test_scores_that_are_not_finite_or_have_another_shape_are_refused() -> None:
    labels_NC = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="finite"):
        average_precision_C(np.full((2, 3), np.nan), labels_NC)
    with pytest.raises(ValueError, match="shape"):
        roc_auc_C(np.zeros((3, 2)), labels_NC)


def test_metrics_without_clips_are_nan() -> None:
    result = evaluate_scores(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), single_label=True)
    assert math.isnan(result["mAP"])
    assert math.isnan(result["accuracy"])
