"""The result of an evaluation: metrics with intervals and scores of each class, as JSON, CSV and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
from rich.table import Table

from ast_core.errors import UserError
from ast_core.evaluation import metrics
from ast_core.evaluation.bootstrap import bootstrap_intervals
from ast_core.evaluation.thresholds import best_f1_threshold
from ast_core.serialization import from_dict, to_dict
from ast_core.storage.atomic_files import atomic_write
from ast_core.storage.json_files import read_json, write_json

HEADLINES = {"accuracy": "accuracy", "mAP": "mAP", "mAUC": "mAUC", "d_prime": "d'"}
"""Keys of the metrics in the tables, and their headings."""
SHOWN_CLASSES = 6
"""Number of best and of worst classes on the screen; the CSV has all classes."""


@dataclass(frozen=True)
class ClassResult:
    """Scores of one class; None where a score is not defined."""

    IGNORES_UNKNOWN_KEYS: ClassVar = True

    positives: float
    """Clips that have the class."""
    ap: float | None = None
    """Average precision."""
    auc: float | None = None
    threshold: float | None = None
    """Threshold of the best F1."""
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    """Best F1 over all thresholds."""


@dataclass(frozen=True)
class EvaluationResult:
    """The content of `evaluation/NAME.json`. Files of older versions lack some of the fields that have a default."""

    IGNORES_UNKNOWN_KEYS: ClassVar = True

    bundle_digest: str
    clips_listed: int
    """Clips that the data set or the clip list names."""
    clips_evaluated: int
    metrics: dict[str, float | None]
    """Metrics of `ast_core.evaluation.metrics.evaluate_scores`; None where one is not defined."""
    data_hash: str = ""
    split: str = ""
    evaluated_on: str = ""
    """Hash of the clips and their labels; results with the same hash can be compared."""
    of: str = ""
    """What `clips_listed` counts, as tables say it."""
    resamples: int = 0
    """Resamples of the clips that the intervals come from; 0 if there are no intervals."""
    intervals: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Lower and upper end of the 95 % interval of each metric."""
    per_class: dict[str, ClassResult] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, what: str = "Evaluation") -> EvaluationResult:
        """Read a file that `write` wrote; `what` names it in errors.

        Raises:
            UserError: the file is missing, or a value has the wrong type.
            DamagedError: the file is not JSON.
        """
        return cls._parse(path, read_json(path, what))

    @classmethod
    def load_if_same(cls, path: Path, wanted: Mapping[str, str | int]) -> EvaluationResult | None:
        """Read a file that `write` wrote; None if it does not exist, or if a value differs from `wanted`.

        Raises:
            UserError: the values are the wanted ones, but another value has the wrong type.
            DamagedError: the file is not JSON.
        """
        if not path.is_file():
            return None
        content = read_json(path, "Evaluation")
        same = isinstance(content, dict) and all(content.get(key) == value for key, value in wanted.items())
        return cls._parse(path, content) if same else None

    @classmethod
    def _parse(cls, path: Path, content: Any) -> EvaluationResult:
        try:
            return from_dict(cls, content)
        except UserError as error:
            raise UserError(f"{path} does not hold an evaluation: {error} Remove it and run evaluate again.") from error

    def write(self, path: Path) -> None:
        """Commit the result as JSON."""
        write_json(path, to_dict(self))


def measure_metrics(scores_NC: np.ndarray, labels_NC: np.ndarray, single: bool) -> dict[str, float | None]:
    """Return the metrics of a test; None where one is not defined."""
    return to_json_numbers(metrics.evaluate_scores(scores_NC, labels_NC, single))


def measure_intervals(
    scores_NC: np.ndarray, labels_NC: np.ndarray, single: bool, resamples: int
) -> dict[str, tuple[float | None, ...]]:
    """Return the ends of the metrics' 95 % intervals; no intervals if `resamples` is 0."""
    intervals = bootstrap_intervals(scores_NC, labels_NC, single, resamples) if resamples else {}
    return {key: tuple(to_json_numbers(dict(enumerate(ends))).values()) for key, ends in intervals.items()}


def measure_classes(scores_NC: np.ndarray, labels_NC: np.ndarray, labels: Sequence[str]) -> dict[str, ClassResult]:
    """Return the scores and the best F1 of each class."""
    precision_C, auc_C = metrics.average_precision_C(scores_NC, labels_NC), metrics.roc_auc_C(scores_NC, labels_NC)
    rows = {}
    for c, label in enumerate(labels):
        best = best_f1_threshold(scores_NC[:, c], labels_NC[:, c] > 0.5)
        values = to_json_numbers({"ap": precision_C[c], "auc": auc_C[c], **asdict(best)})
        rows[label] = ClassResult(positives=float(labels_NC[:, c].sum()), **values)
    return rows


def write_per_class(path: Path, per_class: Mapping[str, ClassResult]) -> None:
    """Write the classes as CSV. The thresholds were chosen on the same clips; expect a lower F1 on other clips."""
    rows = [{"label": label, **asdict(row)} for label, row in per_class.items()]
    with atomic_write(path) as temporary:
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), temporary)


def to_json_numbers(values: Mapping[Any, float]) -> dict[Any, float | None]:
    """Replace NaN and infinity, which JSON cannot hold, by None."""
    return {key: float(value) if math.isfinite(value) else None for key, value in values.items()}


def from_json_numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Replace None by NaN, the reverse of `to_json_numbers`; infinity is not restored."""
    return {key: math.nan if value is None else value for key, value in values.items()}


def bundles_table(results: Mapping[str, EvaluationResult]) -> Table:
    """Return a table with one row per bundle and a last row for chance."""
    last = list(results.values())[-1]
    title = f"evaluate: {last.clips_evaluated} of {last.clips_listed} {last.of}, each once"
    keys = [key for key in HEADLINES if key in last.metrics]
    table = Table("bundle", *(HEADLINES[key] for key in keys), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        cells = [
            format_with_interval(from_json_numbers(result.metrics)[key], result.intervals.get(key)) for key in keys
        ]
        table.add_row(name, *cells, style="bold" if name == "ensemble" else "")
    chance = from_json_numbers(last.metrics) | {"chance_mAUC": 0.5, "chance_d_prime": 0.0}
    table.add_row("chance", *(f"{chance[f'chance_{key}']:.4f}" for key in keys), style="dim")
    if last.resamples:
        table.caption = f"95 % intervals from {last.resamples} resamples of the clips"
    return table


def classes_table(name: str, result: EvaluationResult) -> Table:
    """Return a table of the classes with the highest and the lowest average precision."""
    rows = sorted(result.per_class.items(), key=lambda item: -(item[1].ap or 0.0))
    known = [(label, row) for label, row in rows if row.ap is not None]
    shown = known if len(known) <= 2 * SHOWN_CLASSES else [*known[:SHOWN_CLASSES], *known[-SHOWN_CLASSES:]]
    table = Table(
        "class",
        title=f"classes of {name}"
        + ("" if shown == known else f", the {SHOWN_CLASSES} best and the {SHOWN_CLASSES} worst"),
    )
    for column in ("clips", "AP", "AUC", "best F1", "threshold", "prec.", "recall"):
        table.add_column(column, justify="right")
    for label, row in shown:
        values = (row.ap, row.auc, row.f1, row.threshold, row.precision, row.recall)
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(label.replace("[", "\\["), f"{row.positives:.0f}", *cells)
    return table


def format_with_interval(value: float, interval: Sequence[float | None] | None) -> str:
    """Return a metric and the ends of its interval, if it has one, as the cell of a table."""
    if not interval:
        return f"{value:.4f}"
    low, high = (math.inf if end is None else end for end in interval)
    return f"{value:.4f} \\[{low:.3f}, {high:.3f}]"
