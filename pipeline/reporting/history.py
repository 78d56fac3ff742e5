"""What a person sees of a long training: a bar that follows the curve on disk, and its table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ast_core.evaluation.metrics import headline_metric
from pipeline.run_folder.layout import HISTORIES, TRIALS


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, an epoch each; none if it is not there yet."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_histories(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The curves of a run's members by name, or, in a study's folder, of its trials."""
    own = {path.parent.name: path for path in sorted(run_dir.glob(HISTORIES))}
    trials = sorted(run_dir.glob(f"{TRIALS}/*/*/{HISTORIES}"))
    own |= {f"{path.parents[3].name}, {path.parent.name}": path for path in trials}
    return {name: read_history(path) for name, path in own.items()}


def headline(row: dict[str, Any]) -> str:
    """The row's score as a person names it: accuracy where there is one, else mAP."""
    key = headline_key(row)
    return f"{key.replace('_', ' ')} {row[key]:.3f}" if key else ""


def headline_key(row: dict[str, Any]) -> str:
    """Its name in the row; "" if there is none."""
    metric = headline_metric(any(key.endswith("_accuracy") for key in row))
    return next((key for key in row if key.endswith(f"_{metric}")), "")


def headline_value(row: dict[str, Any]) -> float:
    """The score itself."""
    return float(row[headline_key(row)])
