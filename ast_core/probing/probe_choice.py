"""Choose the strength of the regularisation and the number of neighbours on clips that were held out.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ast_core.evaluation.metrics import evaluate_scores, headline_metric
from ast_core.probing.linear_probe import LinearProbe, ProbeData, ReadRows, fit_linear_probes
from ast_core.probing.nearest_neighbours import find_neighbours
from ast_core.probing.probe_folds import Partition
from ast_core.serialization import NAN_ALLOWED

STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Strengths of the regularisation that are tried; the loss is a mean, so they do not depend on the number of clips."""
DEFAULT_STRENGTH = 1e-2
"""Strength if no clip can be held out."""
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
"""Numbers of neighbours that are tried."""
DEFAULT_NEIGHBOURS = 5
"""Number of neighbours if no clip can be held out."""
_LOOSE = 1e-4
"""Tolerance of the fits that only choose."""
_NEAREST = 1e-7
"""Smallest probability in a logarithm."""


@dataclass(frozen=True)
class Trial:
    """One value that was tried, and how well it did on the clips held out."""

    value: float
    """Strength, or number of neighbours."""
    score: float = field(metadata=NAN_ALLOWED)
    """Accuracy or mAP, the mean over the partitions."""
    loss: float = field(metadata=NAN_ALLOWED)
    """Mean cross-entropy, or binary cross-entropy with several labels; it decides between equal scores."""


def try_strengths(data: ProbeData, partitions: Sequence[Partition], balanced: bool) -> tuple[Trial, ...]:
    """Fit a probe of each strength on each partition, and score it on the clips held out."""
    rows: dict[float, list[tuple[float, float, int]]] = {strength: [] for strength in STRENGTHS}
    for part in partitions:
        labels_NC = data.labels.rows(part.held_N)
        probes = fit_linear_probes(data, part.fit_N, STRENGTHS, balanced, _LOOSE)
        for strength, probe in zip(STRENGTHS, probes, strict=True):
            rows[strength].append(_score(data, probe.probabilities_of(data.read, part.held_N), labels_NC))
    return _average(rows)


def try_neighbours(data: ProbeData, read: ReadRows, partitions: Sequence[Partition]) -> tuple[Trial, ...]:
    """Score each number of neighbours on the clips held out.

    Args:
        data: labels; its features are not used.
        read: reader of the embeddings.
        partitions: clips to search, and clips held out.
    """
    fewest = min((len(part.fit_N) for part in partitions), default=0)
    rows: dict[float, list[tuple[float, float, int]]] = {k: [] for k in NEIGHBOURS if k <= fewest}
    for part in partitions if rows else ():
        labels_NC = data.labels.rows(part.held_N)
        found = find_neighbours(read, part.fit_N, part.held_N, int(max(rows)))
        for k, own in rows.items():
            own.append(_score(data, found.scores(data.labels, int(k)), labels_NC))
    return _average(rows)


def choose_value(trials: Iterable[Trial], default: float) -> float:
    """Return the value with the highest score, of equal ones that with the lowest loss; the default without a score."""
    known = [trial for trial in trials if not math.isnan(trial.score)]
    if not known:
        return default
    return min(known, key=lambda trial: (-trial.score, trial.loss)).value


def fit_chosen(data: ProbeData, rows_N: np.ndarray, strength: float, balanced: bool) -> LinearProbe:
    """Fit the probe of a chosen strength to the end."""
    return next(fit_linear_probes(data, rows_N, [strength], balanced))


def _score(data: ProbeData, scores_NC: np.ndarray, labels_NC: np.ndarray) -> tuple[float, float, int]:
    """Return the headline metric, the loss and the number of clips."""
    score = evaluate_scores(scores_NC, labels_NC, data.single_label)[headline_metric(data.single_label)]
    kept_NC = np.clip(scores_NC.astype(np.float64), _NEAREST, 1 - _NEAREST)
    if data.loss == "bce":
        loss_N = -np.where(labels_NC > 0, np.log(kept_NC), np.log1p(-kept_NC)).mean(axis=1)
    else:
        loss_N = -(labels_NC * np.log(kept_NC)).sum(axis=1)
    return score, float(loss_N.mean()) if len(loss_N) else math.nan, len(labels_NC)


def _average(rows: dict[float, list[tuple[float, float, int]]]) -> tuple[Trial, ...]:
    """Return the means over the partitions, by their numbers of clips."""
    trials = []
    for value, own in rows.items():
        known = [(score, loss, clips) for score, loss, clips in own if not math.isnan(score)]
        total = sum(clips for _, _, clips in known)
        score = sum(score * clips for score, _, clips in known) / total if total else math.nan
        loss = sum(loss * clips for _, loss, clips in known) / total if total else math.nan
        trials.append(Trial(value, score, loss))
    return tuple(trials)
