"""The training curves on disk and the score that stands for an epoch."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from ast_core.evaluation.metrics import headline_metric
from pipeline.run_folder.layout import HISTORIES, TRIALS

EpochRow = dict[str, float]
"""Numbers of one epoch by name: `epoch`, `step`, `train_loss`, `seconds`, and scores such as `test_mAP`."""


def read_history(path: Path) -> list[EpochRow]:
    """Read the rows of a `metrics.jsonl`, one per epoch; return an empty list if the file does not exist yet."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_histories(run_dir: Path) -> dict[str, list[EpochRow]]:
    """Read the curves of a run's members by name, or, in a study's folder, those of its trials."""
    own = {path.parent.name: path for path in sorted(run_dir.glob(HISTORIES))}
    trials = sorted(run_dir.glob(f"{TRIALS}/*/*/{HISTORIES}"))
    own |= {f"{path.parents[3].name}, {path.parent.name}": path for path in trials}
    return {name: read_history(path) for name, path in own.items()}


def headline(row: EpochRow) -> str:
    """Return name and value of the row's score: accuracy if the row has one, else mAP; "" if it has neither."""
    key = headline_key(row)
    return f"{key.replace('_', ' ')} {row[key]:.3f}" if key else ""


def headline_key(keys: Collection[str]) -> str:
    """Return which key of a row is its score; "" if the row has no score."""
    metric = headline_metric(any(key.endswith("_accuracy") for key in keys))
    return next((key for key in keys if key.endswith(f"_{metric}")), "")


def headline_value(row: EpochRow) -> float:
    """Return the row's score."""
    return float(row[headline_key(row)])
