"""Folds that are held out, and the strength and the number of neighbours that they choose."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_core.probing import probe_folds
from ast_core.probing.linear_probe import ProbeData
from ast_core.probing.probe_choice import Trial, choose_value, try_neighbours, try_strengths
from ast_core.probing.probe_folds import Partition, are_folds, partition_clips, stratify
from ast_core.shards.sparse_labels import SparseLabels


def labels_of(target_N: np.ndarray, classes: int) -> SparseLabels:
    return SparseLabels.from_dense(np.eye(classes)[target_N])


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 40))
def test_folds_spread_each_class_and_keep_groups_together(targets: list[int], groups: int) -> None:
    target_N, rows_N = np.array(targets), np.arange(len(targets))
    names = [f"site-{n % groups}" for n in rows_N]
    fold_N = stratify(rows_N, labels_of(target_N, 4), names)
    most = max(len({names[n] for n in rows_N[target_N == label]}) for label in range(4))
    if most < 2:
        assert not len(fold_N)
        return
    assert set(fold_N) <= set(range(min(5, most)))
    assert all(len(set(fold_N[[n for n in rows_N if names[n] == name]])) == 1 for name in names)
    if groups >= len(targets):
        for label in set(targets):
            counts = np.bincount(fold_N[target_N == label], minlength=int(fold_N.max()) + 1)
            assert counts.max() - counts.min() <= 1


def test_folds_do_not_depend_on_the_order_of_the_clips() -> None:
    rng = np.random.default_rng(0)
    target_N, names = rng.integers(3, size=40), np.array([f"clip-{n}" for n in range(40)])
    order = rng.permutation(40)
    first = stratify(np.arange(40), labels_of(target_N, 3), list(names))
    second = stratify(np.arange(40), labels_of(target_N[order], 3), list(names[order]))
    assert (first[order] == second).all()


def test_clips_without_labels_are_in_a_fold_too() -> None:
    labels = SparseLabels.from_dense(np.array([[1, 0], [1, 0], [0, 0], [0, 1], [0, 1]]))
    assert set(stratify(np.arange(5), labels, list("abcde"))) == {0, 1}


def test_training_splits_that_are_folds_are_held_out_one_by_one() -> None:
    splits = [f"fold{1 + n % 3}" for n in range(12)]
    partitions = partition_clips(np.arange(12), labels_of(np.arange(12) % 2, 2), splits, splits)
    assert [part.held_N.tolist() for part in partitions] == [list(range(n, 12, 3)) for n in range(3)]
    assert all(len(part.fit_N) == 8 for part in partitions)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [({"fold1": 9, "fold2": 9}, True), ({"train": 9, "validation": 9}, False), ({"a": 9}, False),
     ({"balanced_train": 20, "unbalanced_train": 2000}, False)],
)  # fmt: skip
def test_splits_are_folds_if_they_are_alike_and_have_no_other_name(sizes: dict[str, int], wanted: bool) -> None:
    assert are_folds(sizes) is wanted


def test_of_many_clips_one_fold_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_folds, "ENOUGH", 30)
    partitions = partition_clips(
        np.arange(30), labels_of(np.arange(30) % 2, 2), ["train"] * 30, list(map(str, range(30)))
    )
    assert [len(part.held_N) for part in partitions] == [6]


def test_one_clip_a_class_leaves_nothing_to_hold_out() -> None:
    assert partition_clips(np.arange(3), labels_of(np.arange(3), 3), ["train"] * 3, list("abc")) == ()


def test_a_noisy_set_chooses_a_stronger_regularisation_than_a_clean_one() -> None:
    rng = np.random.default_rng(3)
    target_N = rng.integers(2, size=200)
    signal_NE = np.pad(np.where(target_N, 1.0, -1.0)[:, None], ((0, 0), (0, 79)))
    partition = Partition(np.arange(100), np.arange(100, 200))
    chosen = {}
    for noise in (0.01, 3.0):
        features_NE = (signal_NE + noise * rng.normal(size=(200, 80))).astype(np.float32)
        data = ProbeData(features_NE.__getitem__, labels_of(target_N, 2), ("a", "b"), True, "cross_entropy")
        trials = try_strengths(data, [partition], balanced=True)
        assert all(0 <= trial.score <= 1 and trial.loss >= 0 for trial in trials)
        chosen[noise] = choose_value(trials, math.nan)
    assert chosen[3.0] > chosen[0.01]


def test_neighbours_are_tried_up_to_the_number_of_clips() -> None:
    features_NE = np.random.default_rng(4).normal(size=(14, 4)).astype(np.float32)
    labels = SparseLabels.from_dense((np.arange(28).reshape(14, 2) % 3 == 0).astype(int))
    data = ProbeData(features_NE.__getitem__, labels, ("a", "b"), False, "bce")
    trials = try_neighbours(data, features_NE.__getitem__, [Partition(np.arange(7), np.arange(7, 14))])
    assert [trial.value for trial in trials] == [1, 3, 5]


def test_equal_scores_are_decided_by_the_loss_and_nothing_tried_is_the_default() -> None:
    assert choose_value([Trial(10, 0.5, 2.0), Trial(1, 0.9, 0.4), Trial(0.1, 0.9, 0.3)], 7) == 0.1
    assert choose_value([Trial(10, math.nan, 2.0)], 7) == 7
    assert choose_value([], 7) == 7
