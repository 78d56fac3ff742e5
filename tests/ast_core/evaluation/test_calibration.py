"""Calibration and thresholds: a known distortion is undone, undecidable classes stay, files are read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ast_core.errors import DamagedError
from ast_core.evaluation.calibration import calibration_error, f1_scores, fit_decisions
from ast_core.evaluation.thresholds import best_f1_threshold
from ast_core.storage.json_files import write_hashed_json
from ast_core.weights.decisions import Decisions, evidence, from_evidence, load_decisions

CLIPS = 4000


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@pytest.fixture
def distorted() -> tuple[np.ndarray, np.ndarray]:
    """Return scores sigmoid(2 z - 3), which are overconfident and too low, and labels drawn from sigmoid(z)."""
    rng = np.random.default_rng(0)
    z_NC = rng.normal(-1, 2, (CLIPS, 3))
    labels_NC = (rng.random(z_NC.shape) < sigmoid(z_NC)).astype(np.float32)
    return sigmoid(2 * z_NC - 3).astype(np.float32), labels_NC


def test_platt_undoes_a_distortion_and_its_thresholds_raise_f1(distorted) -> None:
    scores_NC, labels_NC = distorted
    fitted = fit_decisions(scores_NC[: CLIPS // 2], labels_NC[: CLIPS // 2], False, "b", {"split": "validation"})
    np.testing.assert_allclose(fitted.slope_C, 0.5, atol=0.06)
    np.testing.assert_allclose(fitted.offset_C, 1.5, atol=0.25)
    scores_NC, labels_NC = scores_NC[CLIPS // 2 :], labels_NC[CLIPS // 2 :]
    before = calibration_error(scores_NC, labels_NC, one_label=False)
    assert calibration_error(fitted.calibrated(scores_NC), labels_NC, one_label=False) < 0.02 < before
    assert f1_scores(fitted.decide(scores_NC), labels_NC)[1] > f1_scores(scores_NC >= 0.5, labels_NC)[1] + 0.1


def test_platt_equals_logistic_regression_of_sklearn_on_many_clips(distorted) -> None:
    scores_NC, labels_NC = distorted
    fitted = fit_decisions(scores_NC, labels_NC, False, "b", {})
    logit_N1 = evidence(scores_NC, one_label=False)[:, :1]
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  # seconds, in each process that collects the tests

    peer = LogisticRegression(C=1e9, tol=1e-8).fit(logit_N1, labels_NC[:, 0])
    assert fitted.slope_C[0] == pytest.approx(peer.coef_[0, 0], abs=3e-3)
    assert fitted.offset_C[0] == pytest.approx(peer.intercept_[0], abs=6e-3)


def test_temperature_undoes_overconfidence_and_keeps_the_order() -> None:
    rng = np.random.default_rng(0)
    z_NC = rng.normal(0, 2, (CLIPS, 5))
    true_NC = np.exp(z_NC) / np.exp(z_NC).sum(1, keepdims=True)
    labels_NC = np.eye(5, dtype=np.float32)[[rng.choice(5, p=row) for row in true_NC]]
    sure_NC = np.exp(3 * z_NC) / np.exp(3 * z_NC).sum(1, keepdims=True)
    fitted = fit_decisions(sure_NC.astype(np.float32), labels_NC, True, "b", {})
    assert fitted.slope_C[0] == pytest.approx(1 / 3, abs=0.02)
    calibrated_NC = fitted.calibrated(sure_NC.astype(np.float32))
    assert calibration_error(calibrated_NC, labels_NC, one_label=True) < 0.03
    assert (calibrated_NC.argmax(1) == sure_NC.argmax(1)).all()
    assert (fitted.decide(sure_NC).sum(1) == 1).all()


def test_class_without_positives_or_negatives_keeps_its_probabilities() -> None:
    scores_NC = np.array([[0.9, 0.2, 0.6], [0.8, 0.1, 0.3]], np.float32)
    fitted = fit_decisions(scores_NC, np.array([[1, 0, 1], [1, 0, 0]], np.float32), False, "b", {})
    np.testing.assert_allclose(fitted.calibrated(scores_NC)[:, :2], scores_NC[:, :2], atol=1e-6)
    assert fitted.threshold_C[1] == 0.5
    assert fitted.decide(scores_NC)[:, 0].all()


def test_thresholds_reach_the_best_f1_and_equal_no_score(distorted) -> None:
    scores_NC, labels_NC = distorted
    fitted = fit_decisions(scores_NC, labels_NC, False, "b", {})
    calibrated_NC, decided_NC = fitted.calibrated(scores_NC), fitted.decide(scores_NC)
    for c in range(3):
        best = best_f1_threshold(scores_NC[:, c], labels_NC[:, c] > 0.5).f1
        assert f1_scores(decided_NC[:, [c]], labels_NC[:, [c]])[1] == pytest.approx(best, abs=1e-9)
        assert not np.isclose(calibrated_NC[:, c], fitted.threshold_C[c], rtol=0, atol=1e-12).any()


def test_evidence_is_finite_and_reversible_at_zero_and_one() -> None:
    scores_BC = np.array([[0.0, 1.0, 0.5]], np.float32)
    assert np.isfinite(evidence(scores_BC, one_label=False)).all()
    np.testing.assert_allclose(
        from_evidence(evidence(scores_BC, one_label=False), one_label=False), scores_BC, atol=2e-6
    )


def test_calibration_error_of_a_known_table() -> None:
    """Check two bins with gaps of 0.15: four scores of 0.9 with three positives, four of 0.1 with one positive."""
    scores_NC = np.array([[0.9]] * 4 + [[0.1]] * 4, np.float32)
    labels_NC = np.array([[1], [1], [1], [0], [1], [0], [0], [0]], np.float32)
    assert calibration_error(scores_NC, labels_NC, one_label=False) == pytest.approx(0.15, abs=1e-6)


def test_decisions_are_read_back_and_refused_for_another_bundle(tmp_path: Path) -> None:
    own = Decisions("b", {"split": "v"}, False, (1.0, 2.0), (0.0, 0.5), (0.5, 0.1))
    assert load_decisions(tmp_path, "b", 2) is None
    own.write(tmp_path)
    assert load_decisions(tmp_path, "b", 2) == own
    with pytest.raises(DamagedError, match="another bundle"):
        load_decisions(tmp_path, "c", 2)
    write_hashed_json(tmp_path / "decisions.json", {**dataclasses.asdict(own), "more": 1})
    with pytest.raises(DamagedError, match="calibrate again"):
        load_decisions(tmp_path, "b", 2)
