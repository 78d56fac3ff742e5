"""Find clips whose labels look wrong: a linear probe and the nearest neighbours that never saw a clip disagree with it.

Each fold of the clips is held out once. A probe is fitted on the other folds, and the neighbours come from them, so a
wrong label cannot confirm itself, and neither can other clips of its group.

Shapes: N clips, B clips of a block, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_core.errors import require
from ast_core.probing.linear_probe import BLOCK, ProbeData, ReadRows
from ast_core.probing.nearest_neighbours import find_neighbours
from ast_core.probing.probe_choice import (
    DEFAULT_NEIGHBOURS,
    DEFAULT_STRENGTH,
    choose_value,
    fit_chosen,
    try_neighbours,
    try_strengths,
)
from ast_core.probing.probe_folds import ENOUGH, Partition

Scores = npt.NDArray[np.float32]
_NEAREST = 1e-7
"""Smallest probability in a logarithm."""


@dataclass(frozen=True, eq=False)
class Suspect:
    """A clip whose label looks wrong.

    For clips with one label, the label at issue is the clip's own, and another one has a higher mean of the probe's
    probability and the neighbours' share. Otherwise it is the class on which probe and neighbours disagree most with
    the clip's labels, which the clip has or lacks; this mean is then above a half.
    """

    row: int
    """Index of the clip."""
    suspicion: float
    """1 minus the mean of `probe` and `neighbours`, 0 to 1."""
    loss: float
    """Loss of the probe for the clip: cross-entropy, or the mean binary cross-entropy with several labels."""
    label: int
    """Class at issue."""
    given: bool
    """Whether the clip has it."""
    probe: float
    """Probability by the probe that the clip is right about this class."""
    neighbours: float
    """Share of the neighbours that agree with the clip about this class."""
    by_probe: bool
    """Whether the probe alone disagrees with the clip."""
    by_neighbours: bool
    """Whether the neighbours alone disagree with it."""
    suggested: tuple[int, ...]
    """Labels that probe and neighbours together suggest, ascending."""


@dataclass(frozen=True, eq=False)
class LabelReview:
    """Suspects, and the counts of a review, which balance: clips = judged + unjudged."""

    suspects: tuple[Suspect, ...]
    """Suspects with the highest suspicion, the highest first."""
    found: int
    """Number of all suspects."""
    judged: int
    unjudged: int
    """Clips that cannot be judged, because no clip of another fold has their label."""
    folds: int
    strength: float
    """Strength of the probe's regularisation."""
    k: int
    """Number of neighbours."""


def review_labels(
    data: ProbeData, read: ReadRows, rows_N: np.ndarray, fold_N: np.ndarray, balanced: bool, most: int
) -> LabelReview:
    """Judge the labels of clips by what the clips of other folds teach.

    Args:
        data: features and labels; the features are those of the probe.
        read: reader of the embeddings, for the neighbours.
        rows_N: indices of the clips.
        fold_N: fold of each of these clips, as `place_in_folds` returns it.
        balanced: whether a clip counts in inverse proportion to the number of clips of its class.
        most: largest number of suspects to keep.

    Raises:
        UserError: nothing can be held out, or the data set has one class only.
    """
    held = range(int(fold_N.max(initial=-1)) + 1)
    require(
        len(held) > 1 and len(data.names) > 1,
        "The labels cannot be reviewed: that needs two classes, and a class with clips of two recordings or groups.",
    )
    partitions = [Partition(rows_N[fold_N != fold], rows_N[fold_N == fold]) for fold in held]
    tried = partitions[:1] if len(rows_N) >= ENOUGH else partitions
    strength = choose_value(try_strengths(data, tried, balanced), DEFAULT_STRENGTH)
    fewest = min(len(part.fit_N) for part in partitions)
    k = min(int(choose_value(try_neighbours(data, read, tried), DEFAULT_NEIGHBOURS)), fewest)
    kept: list[Suspect] = []
    found = judged = 0
    for rows_B, probe_BC, near_BC, known_C in _judge_folds(data, read, partitions, strength, k, balanced):
        judge = _judge_one_label if data.single_label else _judge_several_labels
        count, suspects = judge(rows_B, data.labels.rows(rows_B) > 0, probe_BC, near_BC, known_C)
        judged += count
        found += len(suspects)
        kept = sorted([*kept, *suspects], key=lambda own: (-own.suspicion, own.row))[:most]
    return LabelReview(tuple(kept), found, judged, len(rows_N) - judged, len(held), strength, k)


def _judge_folds(
    data: ProbeData, read: ReadRows, partitions: Sequence[Partition], strength: float, k: int, balanced: bool
) -> Iterator[tuple[np.ndarray, Scores, Scores, npt.NDArray[np.bool_]]]:
    """Yield blocks of clips: indices, scores of probe and neighbours, and which classes could be learned for them."""
    for part in partitions:
        probe = fit_chosen(data, part.fit_N, strength, balanced)
        count_C = np.zeros(len(data.names), np.int64)
        for first in range(0, len(part.fit_N), BLOCK):
            count_C += data.labels.rows(part.fit_N[first : first + BLOCK]).sum(axis=0, dtype=np.int64)
        known_C = (count_C > 0) & (count_C < len(part.fit_N))
        for first in range(0, len(part.held_N), BLOCK):
            rows_B = part.held_N[first : first + BLOCK]
            near_BC = find_neighbours(read, part.fit_N, rows_B, k).scores(data.labels, k)
            yield rows_B, probe.probabilities_of(data.read, rows_B), near_BC, known_C


def _judge_one_label(
    rows_B: np.ndarray, has_BC: np.ndarray, probe_BC: Scores, near_BC: Scores, known_C: np.ndarray
) -> tuple[int, list[Suspect]]:
    """Return the number of judged clips, and the suspects among clips with one label each."""
    every_B, own_B = np.arange(len(rows_B)), has_BC.argmax(axis=1)
    both_BC = (probe_BC + near_BC) / 2
    other_BC = np.where(known_C & ~has_BC, both_BC, -1)
    trust_B, judged_B = both_BC[every_B, own_B], known_C[own_B]
    suspects = []
    for b in np.flatnonzero(judged_B & (other_BC.max(axis=1) > trust_B)).tolist():
        own = int(own_B[b])
        probe, near = float(probe_BC[b, own]), float(near_BC[b, own])
        suspects.append(
            Suspect(
                int(rows_B[b]), 1 - float(trust_B[b]), -float(np.log(max(probe, _NEAREST))), own, True, probe, near,
                bool(probe_BC[b].max() > probe), bool(near_BC[b].max() > near), (int(other_BC[b].argmax()),),
            )
        )  # fmt: skip
    return int(judged_B.sum()), suspects


def _judge_several_labels(
    rows_B: np.ndarray, has_BC: np.ndarray, probe_BC: Scores, near_BC: Scores, known_C: np.ndarray
) -> tuple[int, list[Suspect]]:
    """Return the number of judged clips, and the suspects among clips with any number of labels."""
    both_BC = (probe_BC + near_BC) / 2
    against_BC = np.where(known_C, np.where(has_BC, 1 - both_BC, both_BC), 0)
    worst_B = against_BC.argmax(axis=1)
    suspicion_B = against_BC.max(axis=1)
    sure_BC = np.clip(np.where(has_BC, probe_BC, 1 - probe_BC), _NEAREST, 1)
    suggested_BC = np.where(known_C, both_BC >= 0.5, has_BC)
    suspects = []
    for b in np.flatnonzero(suspicion_B > 0.5).tolist():
        label = int(worst_B[b])
        given = bool(has_BC[b, label])
        probe, near = (float(own[b, label] if given else 1 - own[b, label]) for own in (probe_BC, near_BC))
        loss = -float(np.log(sure_BC[b, known_C]).mean())
        suggested = tuple(np.flatnonzero(suggested_BC[b]).tolist())
        suspects.append(
            Suspect(
                int(rows_B[b]),
                float(suspicion_B[b]),
                loss,
                label,
                given,
                probe,
                near,
                probe < 0.5,
                near < 0.5,
                suggested,
            )
        )
    return len(rows_B) if known_C.any() else 0, suspects
