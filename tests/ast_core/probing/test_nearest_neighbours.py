"""Nearest neighbours against scikit-learn's, in blocks and with ties."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ast_core.probing import nearest_neighbours
from ast_core.probing.nearest_neighbours import find_neighbours
from ast_core.shards.sparse_labels import SparseLabels


@pytest.fixture
def embeddings_NE() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(90, 8)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 4, 60])
def test_scores_equal_scikit_learns(embeddings_NE: np.ndarray, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target_N = np.random.default_rng(2).integers(3, size=90)
    training_N, asked_Q = np.arange(60), np.arange(60, 90)
    own = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: 1 - distance / 2)
    wanted_QC = own.fit(embeddings_NE[training_N], target_N[training_N]).predict_proba(embeddings_NE[asked_Q])
    labels = SparseLabels.from_dense(np.eye(3)[target_N])
    for block in (8192, 11):
        monkeypatch.setattr(nearest_neighbours, "BLOCK", block)
        monkeypatch.setattr(nearest_neighbours, "ASKED_AT_ONCE", block)
        found = find_neighbours(embeddings_NE.__getitem__, training_N, asked_Q, 60)
        assert np.allclose(found.scores(labels, k), wanted_QC, atol=1e-5)


def test_the_nearest_clip_comes_first_and_lengths_do_not_count(embeddings_NE: np.ndarray) -> None:
    scaled_NE = embeddings_NE * np.linspace(0.1, 10, 90)[:, None]
    rows_N = np.arange(90)
    found = find_neighbours(scaled_NE.__getitem__, rows_N, rows_N, 3)
    assert (found.index_QK[:, 0] == rows_N).all()
    assert np.allclose(found.cosine_QK[:, 0], 1, atol=1e-5)
    assert (np.diff(found.cosine_QK, axis=1) <= 0).all()


def test_an_embedding_of_zeros_has_finite_scores() -> None:
    embeddings_NE = np.zeros((4, 5), np.float32)
    labels = SparseLabels.from_dense(np.eye(4, 2))
    scores_QC = find_neighbours(embeddings_NE.__getitem__, np.arange(3), np.array([3]), 9).scores(labels, 3)
    assert np.isfinite(scores_QC).all()
