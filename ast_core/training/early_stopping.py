"""Early stopping: the epoch at which a training ends, as a pure function of its settings and its curve.

Nothing is stored for it. A resume, `combine` and the report come to the same epoch from the same curve, and a larger
`early_stopping_epochs` continues a run that had stopped, as a larger `epochs` does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ast_core.config import OptimConfig
from ast_core.evaluation.metrics import headline_metric

Row = Mapping[str, float]
"""Numbers of an epoch by name."""


def find_last_epoch(optim: OptimConfig, history: Sequence[Row]) -> int:
    """Return the epoch after which the training ends: `optim.epochs`, or less if the curve shows that it stops early.

    It stops after the first epoch that follows `early_stopping_epochs` epochs without a better validation score. A
    backbone that is frozen at first trains for at least that many epochs. A score that is not a number is never better.

    Args:
        optim: settings of the optimiser.
        history: rows of the finished epochs, in order from epoch 1.
    """
    patience = optim.early_stopping_epochs
    if not patience:
        return optim.epochs
    earliest, best, best_epoch = max(0, optim.freeze_backbone_epochs) + patience, -math.inf, 0
    for epoch, row in enumerate(history[: optim.epochs], start=1):
        score = _score(row)
        if score > best:
            best, best_epoch = score, epoch
        if epoch >= earliest and epoch - best_epoch >= patience:
            return epoch
    return optim.epochs


def shorten_run(optim: OptimConfig, history: Sequence[Row]) -> OptimConfig:
    """Return the settings with `epochs` and `average_first_epoch` of the run as it ended.

    A run that stopped early averages as many of its last epochs as it would have at its planned end, if it has them.
    """
    last = find_last_epoch(optim, history)
    averaged = optim.epochs - optim.average_first_epoch
    return dataclasses.replace(optim, epochs=last, average_first_epoch=max(1, last - averaged))


def describe_early_stop(optim: OptimConfig, history: Sequence[Row]) -> str:
    """Return a sentence about a run that stopped early; "" for any other run."""
    last = find_last_epoch(optim, history)
    if last == optim.epochs or len(history) < last:
        return ""
    scores = [-math.inf if math.isnan(score := _score(row)) else score for row in history[:last]]
    best = scores.index(max(scores))
    return (
        f"Stopped early after epoch {last} of {optim.epochs}: no validation score of the last "
        f"{optim.early_stopping_epochs} epochs is better than that of epoch {best + 1}, {scores[best]:.4f}."
    )


def _score(row: Row) -> float:
    """Return the epoch's score on the validation split."""
    metric = headline_metric("validation_accuracy" in row)
    return float(row.get(f"validation_{metric}", math.nan))
