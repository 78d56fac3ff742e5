"""Bootstrap intervals against scikit-learn on clips that are really repeated, and against a known spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_core.evaluation.bootstrap import _draw_resamples, _sort_class, bootstrap_intervals
from ast_core.evaluation.metrics import average_precision_C, evaluate_scores, roc_auc_C


@given(st.integers(0, 2**32), st.integers(1, 50), st.sampled_from([0, 1, 2, 5]))
@settings(max_examples=150, deadline=None)
def test_metrics_from_counts_equal_those_of_repeated_clips(seed: int, clips: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    scores_N = rng.random(clips).astype(np.float32)
    if steps:
        scores_N = np.floor(scores_N * steps)
    positive_N = rng.random(clips) < rng.random()
    counts_NB = next(_draw_resamples(clips, 3))
    precision_B, auc_B = _sort_class(scores_N, positive_N).metrics(counts_NB)
    for b in range(3):
        repeated = np.repeat(np.arange(clips), counts_NB[:, b])
        one = (scores_N[repeated, None], positive_N[repeated, None].astype(np.float32))
        assert precision_B[b] == pytest.approx(average_precision_C(*one)[0], abs=1e-12, nan_ok=True)
        assert auc_B[b] == pytest.approx(roc_auc_C(*one)[0], abs=1e-12, nan_ok=True)


def test_intervals_equal_those_of_repeated_clips_and_are_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    labels_NC = np.eye(4, dtype=np.float32)[rng.integers(4, size=120)]
    scores_NC = (labels_NC + rng.normal(0, 0.8, labels_NC.shape)).astype(np.float32)
    found = bootstrap_intervals(scores_NC, labels_NC, True, 150)
    rows = []
    for counts_NB in _draw_resamples(120, 150):
        for counts_N in counts_NB.T:
            repeated = np.repeat(np.arange(120), counts_N)
            rows.append(evaluate_scores(scores_NC[repeated], labels_NC[repeated], True))
    for key, interval in found.items():
        expected = np.quantile([row[key] for row in rows], [0.025, 0.975], method="nearest")
        assert interval == pytest.approx(tuple(expected), abs=1e-12)
    assert found == bootstrap_intervals(scores_NC, labels_NC, True, 150)
    point = evaluate_scores(scores_NC, labels_NC, True)
    assert all(low < point[key] < high for key, (low, high) in found.items())


def test_interval_of_an_accuracy_has_the_width_of_the_binomial() -> None:
    labels_NC = np.eye(2, dtype=np.float32)[np.zeros(900, int)]
    scores_NC = labels_NC.copy()
    scores_NC[:300] = scores_NC[:300, ::-1]  # a third is wrong
    low, high = bootstrap_intervals(scores_NC, labels_NC, True, 2000)["accuracy"]
    deviation = np.sqrt(2 / 3 * 1 / 3 / 900)
    assert (high - low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.06)


def test_no_clips_return_no_intervals() -> None:
    assert bootstrap_intervals(np.zeros((0, 2)), np.zeros((0, 2)), False, 10) == {}
