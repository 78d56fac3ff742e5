"""The result of an evaluation: metrics with intervals and scores of each class, as JSON, CSV and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from rich.table import Table

from ast_core.evaluation import metrics
from ast_core.evaluation.bootstrap import bootstrap_intervals
from ast_core.evaluation.thresholds import best_f1_threshold
from ast_core.storage.atomic_files import atomic_write

Result = dict[str, Any]
"""The content of `evaluation/NAME.json`: metrics, intervals, resamples, per_class and facts about the clips."""
HEADLINES = {"accuracy": "accuracy", "mAP": "mAP", "mAUC": "mAUC", "d_prime": "d'"}
"""Keys of the metrics in the tables, and their headings."""
SHOWN_CLASSES = 6
"""Number of best and of worst classes on the screen; the CSV has all classes."""


def measure(
    scores_NC: np.ndarray, labels_NC: np.ndarray, labels: Sequence[str], single: bool, resamples: int
) -> Result:
    """Compute the metrics, their 95 % intervals if `resamples` is not 0, and the scores and best F1 of each class."""
    intervals = bootstrap_intervals(scores_NC, labels_NC, single, resamples) if resamples else {}
    return {
        "metrics": to_json_numbers(metrics.evaluate_scores(scores_NC, labels_NC, single)),
        "intervals": {key: list(to_json_numbers(dict(enumerate(ends))).values()) for key, ends in intervals.items()},
        "resamples": resamples,
        "per_class": {
            label: to_json_numbers(row) for label, row in _measure_classes(scores_NC, labels_NC, labels).items()
        },
    }


def _measure_classes(
    scores_NC: np.ndarray, labels_NC: np.ndarray, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    precision_C, auc_C = metrics.average_precision_C(scores_NC, labels_NC), metrics.roc_auc_C(scores_NC, labels_NC)
    rows = {}
    for c, label in enumerate(labels):
        row = {"positives": labels_NC[:, c].sum(), "ap": precision_C[c], "auc": auc_C[c]}
        rows[label] = row | asdict(best_f1_threshold(scores_NC[:, c], labels_NC[:, c] > 0.5))
    return rows


def write_per_class(path: Path, per_class: Mapping[str, Mapping[str, float | None]]) -> None:
    """Write the classes as CSV. The thresholds were chosen on the same clips; expect a lower F1 on other clips."""
    rows = [{"label": label, **row} for label, row in per_class.items()]
    with atomic_write(path) as temporary:
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), temporary)


def to_json_numbers(values: Mapping[Any, float]) -> dict[Any, float | None]:
    """Replace NaN and infinity, which JSON cannot hold, by None."""
    return {key: float(value) if math.isfinite(value) else None for key, value in values.items()}


def from_json_numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Replace None by NaN, the reverse of `to_json_numbers`; infinity is not restored."""
    return {key: math.nan if value is None else value for key, value in values.items()}


def bundles_table(results: Mapping[str, Result]) -> Table:
    """Return a table with one row per bundle and a last row for chance."""
    last = list(results.values())[-1]
    title = f"evaluate: {last['clips_evaluated']} of {last['clips_listed']} {last['of']}, each once"
    keys = [key for key in HEADLINES if key in last["metrics"]]
    table = Table("bundle", *(HEADLINES[key] for key in keys), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        cells = [
            _format_with_interval(from_json_numbers(result["metrics"])[key], result["intervals"].get(key))
            for key in keys
        ]
        table.add_row(name, *cells, style="bold" if name == "ensemble" else "")
    chance = from_json_numbers(last["metrics"]) | {"chance_mAUC": 0.5, "chance_d_prime": 0.0}
    table.add_row("chance", *(f"{chance[f'chance_{key}']:.4f}" for key in keys), style="dim")
    if last["resamples"]:
        table.caption = f"95 % intervals from {last['resamples']} resamples of the clips"
    return table


def classes_table(name: str, result: Result) -> Table:
    """Return a table of the classes with the highest and the lowest average precision."""
    rows = sorted(result["per_class"].items(), key=lambda item: -(item[1]["ap"] or 0.0))
    known = [(label, row) for label, row in rows if row["ap"] is not None]
    shown = known if len(known) <= 2 * SHOWN_CLASSES else [*known[:SHOWN_CLASSES], *known[-SHOWN_CLASSES:]]
    table = Table(
        "class",
        title=f"classes of {name}"
        + ("" if shown == known else f", the {SHOWN_CLASSES} best and the {SHOWN_CLASSES} worst"),
    )
    for column in ("clips", "AP", "AUC", "best F1", "threshold", "prec.", "recall"):
        table.add_column(column, justify="right")
    for label, row in shown:
        keys = ("ap", "auc", "f1", "threshold", "precision", "recall")
        cells = ["" if row[key] is None else f"{row[key]:.3f}" for key in keys]
        table.add_row(label.replace("[", "\\["), f"{row['positives']:.0f}", *cells)
    return table


def _format_with_interval(value: float, interval: Sequence[float | None] | None) -> str:
    if not interval:
        return f"{value:.4f}"
    low, high = (math.inf if end is None else end for end in interval)
    return f"{value:.4f} \\[{low:.3f}, {high:.3f}]"
