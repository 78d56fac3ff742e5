"""The training curves on disk and the score that stands for an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ast_core.evaluation.metrics import headline_metric
from pipeline.run_folder.layout import HISTORIES, TRIALS


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`, one per epoch; return an empty list if the file does not exist yet."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_histories(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the curves of a run's members by name, or, in a study's folder, those of its trials."""
    own = {path.parent.name: path for path in sorted(run_dir.glob(HISTORIES))}
    trials = sorted(run_dir.glob(f"{TRIALS}/*/*/{HISTORIES}"))
    own |= {f"{path.parents[3].name}, {path.parent.name}": path for path in trials}
    return {name: read_history(path) for name, path in own.items()}


def headline(row: dict[str, Any]) -> str:
    """Return name and value of the row's score: accuracy if the row has one, else mAP; "" if it has neither."""
    key = headline_key(row)
    return f"{key.replace('_', ' ')} {row[key]:.3f}" if key else ""


def headline_key(row: dict[str, Any]) -> str:
    """Return the key of the row's score; "" if the row has no score."""
    metric = headline_metric(any(key.endswith("_accuracy") for key in row))
    return next((key for key in row if key.endswith(f"_{metric}")), "")


def headline_value(row: dict[str, Any]) -> float:
    """Return the row's score."""
    return float(row[headline_key(row)])
