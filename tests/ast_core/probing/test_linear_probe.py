"""Logistic regression against scikit-learn's, the folded standardisation, and what cannot be learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ast_core.errors import UserError
from ast_core.probing import linear_probe
from ast_core.probing.linear_probe import LinearProbe, ProbeData, fit_linear_probes, require_learnable
from ast_core.shards.sparse_labels import SparseLabels

WIDTH, NAMES = 12, ("cat", "dog", "rain")
STRENGTH = 0.01


def make_data(clips: int = 240, single: bool = True, seed: int = 0) -> ProbeData:
    """Return features around a centre for each class; the classes are unbalanced, and features differ in scale."""
    rng = np.random.default_rng(seed)
    centres_CE = rng.normal(size=(len(NAMES), WIDTH))
    if single:
        labels_NC = np.eye(len(NAMES))[rng.choice(len(NAMES), clips, p=[0.7, 0.2, 0.1])]
    else:
        labels_NC = (rng.random((clips, len(NAMES))) < [0.6, 0.3, 0.1]).astype(float)
    features_NE = labels_NC @ centres_CE + rng.normal(size=(clips, WIDTH))
    features_NE = (features_NE * np.geomspace(0.1, 10, WIDTH) + 3).astype(np.float32)
    loss = "cross_entropy" if single else "bce"
    return ProbeData(features_NE.__getitem__, SparseLabels.from_dense(labels_NC), NAMES, single, loss)


def fit(data: ProbeData, rows_N: np.ndarray, balanced: bool) -> LinearProbe:
    return next(fit_linear_probes(data, rows_N, [STRENGTH], balanced))


def theirs(features_NE: np.ndarray, targets_N: np.ndarray, balanced: bool) -> np.ndarray:
    own = LogisticRegression(
        C=1 / (STRENGTH * len(features_NE)), class_weight="balanced" if balanced else None, tol=1e-9, max_iter=10_000
    )
    scaled_NE = StandardScaler().fit_transform(features_NE.astype(np.float64))
    return own.fit(scaled_NE, targets_N).predict_proba(scaled_NE)


@pytest.mark.parametrize("balanced", [False, True])
def test_one_label_equals_scikit_learns_multinomial_regression(balanced: bool) -> None:
    data, rows_N = make_data(), np.arange(240)
    features_NE, labels_NC = data.read(rows_N), data.labels.to_dense()
    own_NC = fit(data, rows_N, balanced).probabilities(features_NE)
    assert np.allclose(own_NC, theirs(features_NE, labels_NC.argmax(axis=1), balanced), atol=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_several_labels_equal_one_regression_of_scikit_learn_a_class(balanced: bool) -> None:
    data, rows_N = make_data(single=False), np.arange(240)
    features_NE, labels_NC = data.read(rows_N), data.labels.to_dense()
    own_NC = fit(data, rows_N, balanced).probabilities(features_NE)
    for c in range(len(NAMES)):
        assert np.allclose(own_NC[:, c], theirs(features_NE, labels_NC[:, c], balanced)[:, 1], atol=1e-4)


@pytest.mark.parametrize("single", [True, False])
def test_blocks_that_are_read_again_change_nothing(single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, rows_N = make_data(single=single), np.arange(0, 240, 2)
    complete = fit(data, rows_N, balanced=True)
    monkeypatch.setattr(linear_probe, "BLOCK", 7)
    monkeypatch.setattr(linear_probe, "MOST_HELD_BYTES", 0)
    in_blocks = fit(data, rows_N, balanced=True)
    features_NE = data.read(np.arange(240))
    assert np.allclose(complete.probabilities(features_NE), in_blocks.probabilities(features_NE), atol=1e-5)


def test_a_start_from_a_stronger_fit_ends_at_the_same_optimum() -> None:
    data, rows_N = make_data(), np.arange(240)
    *_, warm = fit_linear_probes(data, rows_N, [1.0, 0.1, STRENGTH], balanced=False)
    features_NE = data.read(rows_N)
    cold = fit(data, rows_N, balanced=False)
    assert np.allclose(warm.probabilities(features_NE), cold.probabilities(features_NE), atol=1e-5)


def test_balanced_weights_find_more_of_the_rare_class() -> None:
    data, rows_N = make_data(), np.arange(240)
    rare_N = data.labels.to_dense()[:, 2] > 0
    found = [
        (fit(data, rows_N, balanced).probabilities(data.read(rows_N)).argmax(axis=1)[rare_N] == 2).mean()
        for balanced in (False, True)
    ]
    assert found[1] > found[0]


def test_a_constant_feature_has_no_effect() -> None:
    data, rows_N = make_data(), np.arange(240)
    features_NE = data.read(rows_N).copy()
    features_NE[:, 3] = 7.0
    probe = fit(replace(data, read=features_NE.__getitem__), rows_N, balanced=False)
    assert np.isfinite(probe.weight_CE).all()
    assert np.abs(probe.weight_CE[:, 3]).max() < 1e-6


@pytest.mark.parametrize("single", [True, False])
def test_a_class_without_a_clip_in_the_fit_has_probability_zero(single: bool) -> None:
    data = make_data(single=single)
    rows_N = np.flatnonzero(data.labels.to_dense()[:, 2] == 0)
    probabilities_NC = fit(data, rows_N, balanced=True).probabilities(data.read(np.arange(240)))
    assert probabilities_NC[:, 2].max() == 0
    assert np.isfinite(probabilities_NC).all()


def test_a_class_without_a_training_clip_is_refused_by_name() -> None:
    data = make_data()
    rows_N = np.flatnonzero(data.labels.to_dense()[:, 2] == 0)
    with pytest.raises(UserError, match="The training splits train have no usable clip of the class rain; a probe"):
        require_learnable(data, rows_N, "The training splits train")


def test_clips_of_one_class_only_are_refused() -> None:
    data = make_data()
    rows_N = np.flatnonzero(data.labels.to_dense()[:, 0] == 1)
    with pytest.raises(UserError, match="no usable clip of the classes dog, rain"):
        require_learnable(data, rows_N, "The training splits train")


def test_a_class_of_every_clip_is_refused() -> None:
    labels_NC = np.ones((9, 2))
    labels_NC[:4, 1] = 0
    data = replace(make_data(single=False), labels=SparseLabels.from_dense(labels_NC), names=("a", "b"))
    with pytest.raises(UserError, match="Every usable clip of the training splits train has the class a"):
        require_learnable(data, np.arange(9), "The training splits train")


def test_several_labels_are_refused_with_cross_entropy() -> None:
    data = replace(make_data(single=False), loss="cross_entropy")
    with pytest.raises(UserError, match="several labels or none, so they cannot be learned with cross_entropy"):
        require_learnable(data, np.arange(240), "The training splits train")


def test_no_clip_and_one_class_are_refused() -> None:
    with pytest.raises(UserError, match="have no usable clip"):
        require_learnable(make_data(), np.empty(0, np.int64), "The training splits train")
    alone = replace(make_data(), labels=SparseLabels.from_dense(np.ones((240, 1))), names=("cat",))
    with pytest.raises(UserError, match="one class, cat"):
        require_learnable(alone, np.arange(240), "The training splits train")
