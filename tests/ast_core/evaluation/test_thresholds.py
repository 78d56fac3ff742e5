"""Threshold of the best F1 against scikit-learn's curve, ties included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_core.evaluation.thresholds import best_f1_threshold


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0, 1, 3]))
@settings(max_examples=150, deadline=None)
def test_no_threshold_on_the_curve_of_scikit_learn_has_a_higher_f1(seed: int, clips: int, steps: int) -> None:
    from sklearn.metrics import f1_score, precision_recall_curve  # noqa: PLC0415  # seconds, in each process that collects the tests

    rng = np.random.default_rng(seed)
    scores_N = rng.random(clips)
    if steps:
        scores_N = np.floor(scores_N * steps) / steps
    positive_N = rng.random(clips) < 0.4
    found = best_f1_threshold(scores_N, positive_N)
    if not positive_N.any():
        assert math.isnan(found.f1)
        return
    precision, recall, _ = precision_recall_curve(positive_N, scores_N)
    with np.errstate(invalid="ignore"):
        assert found.f1 == pytest.approx(np.nanmax(2 * precision * recall / (precision + recall)), abs=1e-12)
    assert found.f1 == pytest.approx(f1_score(positive_N, scores_N >= found.threshold), abs=1e-12)
    assert found.f1 == pytest.approx(2 * found.precision * found.recall / (found.precision + found.recall))
