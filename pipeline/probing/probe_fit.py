"""Choose, fit and test a linear probe and nearest neighbours on some training and test clips.

Shapes: N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ast_core.probing.linear_probe import LinearProbe, ProbeData, ReadRows, require_learnable
from ast_core.probing.nearest_neighbours import find_neighbours
from ast_core.probing.probe_choice import (
    DEFAULT_NEIGHBOURS,
    DEFAULT_STRENGTH,
    Trial,
    choose_value,
    fit_chosen,
    try_neighbours,
    try_strengths,
)
from ast_core.probing.probe_folds import Partition, partition_clips
from pipeline.probing.probe_clips import ProbeClips
from pipeline.scoring.results import measure_intervals, measure_metrics


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen on clips that were held out, and what was tried."""

    value: float
    tried: tuple[Trial, ...] = ()
    """Values in the order in which they were tried; empty if nothing could be held out."""


@dataclass(frozen=True)
class Score:
    """Metrics of some test clips with their intervals."""

    clips: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, tuple[float | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ProbeInputs:
    """Everything that the fits share."""

    clips: ProbeClips
    data: ProbeData
    """What the linear probe sees: what the head of the model takes."""
    read: ReadRows
    """Reader of the embeddings as they are stored, for the nearest neighbours."""
    balanced: bool
    """Whether a clip counts in inverse proportion to the number of clips of its class."""

    def score(self, scores_NC: np.ndarray, rows_N: np.ndarray, resamples: int) -> Score:
        """Return metrics and intervals of some clips."""
        labels_NC, single = self.data.labels.rows(rows_N), self.data.single_label
        metrics = measure_metrics(scores_NC, labels_NC, single)
        return Score(len(rows_N), metrics, measure_intervals(scores_NC, labels_NC, single, resamples))


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A linear probe and nearest neighbours, chosen and fitted on the training clips."""

    probe: LinearProbe
    training_N: np.ndarray
    strength: Choice
    neighbours: Choice
    chosen_on: str
    """Clips that the settings were chosen on, as the table says it."""

    def linear_scores(self, inputs: ProbeInputs, rows_N: np.ndarray) -> np.ndarray:
        """Return the probabilities of some clips by the linear probe, float32 [N, C]."""
        return self.probe.probabilities_of(inputs.data.read, rows_N)

    def neighbour_scores(self, inputs: ProbeInputs, rows_N: np.ndarray) -> np.ndarray:
        """Return the scores of some clips by their nearest neighbours, float32 [N, C]."""
        k = int(self.neighbours.value)
        return find_neighbours(inputs.read, self.training_N, rows_N, k).scores(inputs.data.labels, k)


def fit_probe(inputs: ProbeInputs, train_splits: Sequence[str], validation_split: str) -> FittedProbe:
    """Choose strength and number of neighbours, and fit the probe on all training clips.

    The settings are chosen on the validation split; without one, on folds of the training clips.

    Raises:
        UserError: a class cannot be learned from the training clips.
    """
    rows_N = inputs.clips.rows(train_splits)
    require_learnable(inputs.data, rows_N, f"The training splits {', '.join(train_splits)}")
    partitions, chosen_on = _hold_out(inputs, rows_N, validation_split)
    strengths = try_strengths(inputs.data, partitions, inputs.balanced) if partitions else ()
    neighbours = try_neighbours(inputs.data, inputs.read, partitions) if partitions else ()
    strength = choose_value(strengths, DEFAULT_STRENGTH)
    k = choose_value(neighbours, min(DEFAULT_NEIGHBOURS, len(rows_N)))
    probe = fit_chosen(inputs.data, rows_N, strength, inputs.balanced)
    return FittedProbe(probe, rows_N, Choice(strength, strengths), Choice(k, neighbours), chosen_on)


def _hold_out(inputs: ProbeInputs, rows_N: np.ndarray, validation_split: str) -> tuple[Sequence[Partition], str]:
    """Return what is held out to choose the settings, and its name for the table."""
    if validation_split:
        held_N = inputs.clips.rows([validation_split])
        if len(held_N):
            return [Partition(rows_N, held_N)], f"the split {validation_split}"
    splits = [inputs.clips.clips[row].split for row in rows_N]
    found = partition_clips(rows_N, inputs.data.labels, splits, inputs.clips.groups(rows_N))
    if not found:
        return (), "nothing: no class has training clips of two recordings or groups"
    return found, f"{len(found)} of the folds of the training clips" if len(found) == 1 else (
        f"{len(found)} folds of the training clips"
    )
