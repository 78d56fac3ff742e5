"""The review of labels finds swapped labels, judges nothing by itself, and counts every clip."""

from __future__ import annotations

import numpy as np
import pytest

from ast_core.errors import UserError
from ast_core.probing.label_review import LabelReview, review_labels
from ast_core.probing.linear_probe import ProbeData
from ast_core.probing.probe_folds import place_in_folds
from ast_core.shards.sparse_labels import SparseLabels

CLASSES = ("dog", "rain", "siren")


def make_clips(clips: int, seed: int = 0, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of clips around a centre for each class, and the classes."""
    rng = np.random.default_rng(seed)
    label_N = np.arange(clips) % len(CLASSES)
    centres_CE = rng.normal(0, 1, (len(CLASSES), 8))
    return (centres_CE[label_N] + rng.normal(0, spread, (clips, 8))).astype(np.float32), label_N


def review(
    embeddings_NE: np.ndarray,
    own: list[list[int]],
    single: bool = True,
    groups: list[str] | None = None,
    most: int = 99,
) -> LabelReview:
    offsets_N = np.cumsum([0, *map(len, own)]).astype(np.int64)
    labels = SparseLabels(offsets_N, np.array([label for one in own for label in one], np.int32), len(CLASSES))
    rows_N = np.arange(len(own))
    names = groups or [str(n) for n in range(len(own))]
    fold_N = place_in_folds(rows_N, labels, ["train"] * len(own), names)
    data = ProbeData(embeddings_NE.__getitem__, labels, CLASSES, single, "cross_entropy" if single else "bce")
    return review_labels(data, embeddings_NE.__getitem__, rows_N, fold_N, True, most)


def test_swapped_labels_are_the_first_suspects_and_their_own_labels_are_suggested() -> None:
    embeddings_NE, label_N = make_clips(90)
    swapped = {4: 0, 17: 0, 40: 2, 71: 0}
    found = review(embeddings_NE, [[swapped.get(n, int(label))] for n, label in enumerate(label_N)])
    first = found.suspects[: len(swapped)]
    assert {own.row for own in first} == set(swapped)
    for own in first:
        assert own.suggested == (label_N[own.row],)
        assert (own.label, own.given, own.by_probe, own.by_neighbours) == (swapped[own.row], True, True, True)
        assert own.probe < 0.5
        assert own.neighbours < 0.5
        assert own.loss == pytest.approx(-np.log(own.probe))
        assert 0 < own.suspicion <= 1
    assert (found.judged, found.unjudged, found.folds) == (90, 0, 5)
    assert [own.suspicion for own in found.suspects] == sorted((own.suspicion for own in found.suspects), reverse=True)


def test_missing_and_superfluous_labels_are_found_among_several() -> None:
    embeddings_NE, label_N = make_clips(90, spread=0.3)
    own = [[int(label)] for label in label_N]
    own[6], own[31] = [], [0, 1]  # 6 lacks dog; 31 is rain, and has dog, too
    found = review(embeddings_NE, own, single=False)
    first = {suspect.row: suspect for suspect in found.suspects[:2]}
    assert set(first) == {6, 31}
    assert (first[6].label, first[6].given, first[6].suggested) == (0, False, (0,))
    assert (first[31].label, first[31].given, first[31].suggested) == (0, True, (1,))
    assert found.judged == 90


def test_clips_of_a_group_do_not_vouch_for_each_other() -> None:
    embeddings_NE, label_N = make_clips(90)
    rain = np.flatnonzero(label_N == 1)[:6]
    wrong = [[0] if n in rain else [int(label)] for n, label in enumerate(label_N)]
    embeddings_NE[rain] = embeddings_NE[rain[0]]  # parts of one recording
    groups = ["the recording" if n in rain else str(n) for n in range(90)]
    found = review(embeddings_NE, wrong, groups=groups)
    assert set(rain.tolist()) <= {own.row for own in found.suspects}


def test_the_only_clip_of_a_class_is_not_judged_and_only_the_most_suspicious_are_kept() -> None:
    embeddings_NE, label_N = make_clips(60, spread=3)
    own = [[0] if n == 2 or label == 0 else [1] for n, label in enumerate(label_N)]
    own[5] = [2]
    found = review(embeddings_NE, own, most=3)
    assert (found.judged, found.unjudged, len(found.suspects)) == (59, 1, 3)
    assert found.found > 3
    assert 5 not in {suspect.row for suspect in found.suspects}
    everything = review(embeddings_NE, own)
    assert [one.row for one in everything.suspects[:3]] == [one.row for one in found.suspects]


def test_without_two_recordings_of_a_class_nothing_is_judged() -> None:
    embeddings_NE, _ = make_clips(3)
    with pytest.raises(UserError, match="needs two classes, and a class with clips of two recordings"):
        review(embeddings_NE, [[0], [1], [2]])
