"""A study's table, like the paper's: ours beside the published numbers, each with what it was measured on."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console

from ast_core.errors import require
from ast_core.evaluation.metrics import headline_metric
from ast_core.model.cost import ModelCost, model_cost
from ast_core.shards.index import ShardIndex
from ast_core.storage.atomic_files import atomic_write
from pipeline.reporting.history import headline_value, read_history
from pipeline.scoring.results import from_json_numbers
from tune.plots import plot_study
from tune.studies import BALANCED, FULL, Study
from tune.trial import Trial

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
PAPERS = {BALANCED: "paper bal.", FULL: "paper full"}
"""Headings of the published numbers."""


@dataclass(frozen=True)
class Line:
    """A variant's row."""

    variant: str
    cost: ModelCost
    scores: tuple[float, ...]
    """Of the weights that stand for a run, a seed each."""
    last: tuple[float, ...]
    """Of the last epochs."""
    seconds: float
    """Training time of a trial, mean."""
    published: dict[str, float] = field(default_factory=dict)
    stopped: int = 0
    """Trials that were ended early; their score is that of their last epoch's curve."""
    failed: int = 0

    @property
    def mean(self) -> float:
        """Over seeds; NaN if no trial was done."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def std(self) -> float:
        """Over seeds, of a sample; NaN under two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan

    @property
    def shown(self) -> str:
        """Mean and deviation."""
        notes = [f"{self.stopped} stopped early"] * bool(self.stopped) + [f"{self.failed} failed"] * bool(self.failed)
        return _shown(self.scores) + (f" ({', '.join(notes)})" if notes else "")

    @property
    def logged(self) -> dict[str, float]:
        """For the tracker."""
        return {"mean": self.mean, "std": self.std, "patches": float(self.cost.patches)}


@dataclass(frozen=True)
class Table:
    """A study's result."""

    study: Study
    metric: str
    """`accuracy` or `mAP`."""
    data: str
    """What ours was measured on."""
    rows: tuple[Line, ...]

    def best(self) -> Line:
        """The variant of the highest mean. UserError if no trial was done."""
        done = [row for row in self.rows if row.scores]
        require(bool(done), f"No trial of the study {self.study.name} was finished.")
        return max(done, key=lambda row: row.mean)

    def columns(self) -> dict[str, Callable[[Line], str]]:
        """Headings, and what a row shows under each."""
        own: dict[str, Callable[[Line], str]] = {
            "variant": lambda row: row.variant,
            "patches": lambda row: str(row.cost.patches),
            "GMAC": lambda row: f"{row.cost.macs / 1e9:.3g}",
            "M par.": lambda row: f"{row.cost.parameters / 1e6:.3g}",
            self.metric: lambda row: row.shown,
            "last epoch": lambda row: _shown(row.last),
            "train s": lambda row: f"{row.seconds:.0f}",
        }
        for name in (BALANCED, FULL):
            if any(name in row.published for row in self.rows):
                own[PAPERS[name]] = lambda row, name=name: (  # type: ignore[misc]
                    f"{row.published[name]:.3f}" if name in row.published else ""
                )
        return own

    @property
    def caption(self) -> str:
        """Whose numbers are whose."""
        note = f" {self.study.note}" if self.study.note else ""
        return (
            f"{self.metric} and last epoch are ours, on {self.data}; mean {PLUS_MINUS} standard deviation over seeds. "
            f"The paper's are mAP on AudioSet, trained on its balanced or its full set.{note}"
        )

    def show(self, console: Console) -> None:
        """Print it."""
        best = max((row.mean for row in self.rows if row.scores), default=math.nan)
        table = rich.table.Table(title=self.study.title, caption=self.caption, caption_justify="left")
        for number, heading in enumerate(self.columns()):
            table.add_column(heading, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
        for row in self.rows:
            table.add_row(*(cell(row) for cell in self.columns().values()), style="bold" if row.mean == best else "")
        console.print(table)


def tabulate(study: Study, trials: Sequence[Trial]) -> Table:
    """The trials' results, a line a variant, in the study's order."""
    index = ShardIndex.load(trials[0].settings.shards)
    metric = headline_metric(index.single_label)
    rows = []
    for variant in study.variants:
        own = [trial for trial in trials if trial.variant == variant.name]
        results = [(trial, trial.result()) for trial in own]
        done = [(trial, result) for trial, result in results if result]
        settings = own[0].settings
        rows.append(
            Line(
                variant.name,
                model_cost(settings.model, settings.front_end, len(index.labels)),
                tuple(_standing(trial, result, metric) for trial, result in done),
                tuple(headline_value(read_history(trial.history)[-1]) for trial, _ in done),
                statistics.fmean(result["seconds"] for _, result in done) if done else math.nan,
                dict(variant.published),
                sum(result["status"] == "stopped" for _, result in done),
                len(own) - len(done),
            )
        )
    return Table(study, metric, _data(trials[0], index), tuple(rows))


def write_report(folder: Path, table: Table) -> None:
    """Commit `report/STUDY.csv`, `.md` and `.png` in the study's folder."""
    columns = table.columns()
    cells = [[cell(row) for cell in columns.values()] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(columns), ["---"] * len(columns), *cells]]
    markdown = f"# {table.study.title}\n\n" + "\n".join(lines) + f"\n\n{table.caption}\n"
    text = io.StringIO()
    heads = [
        "variant",
        "patches",
        "macs",
        "parameters",
        "metric",
        "mean",
        "std",
        "scores",
        "last",
        "training_s",
        "data",
    ]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*heads, f"paper {BALANCED}", f"paper {FULL}"])
    for row in table.rows:
        size = (row.cost.patches, row.cost.macs, row.cost.parameters)
        scores = (" ".join(f"{value:.6g}" for value in values) for values in (row.scores, row.last))
        ours = (table.metric, row.mean, row.std, *scores, row.seconds, table.data)
        writer.writerow([row.variant, *size, *ours, row.published.get(BALANCED, ""), row.published.get(FULL, "")])
    output = folder / "report"
    for ending, content in ((".md", markdown), (".csv", text.getvalue())):
        with atomic_write(output / f"{table.study.name}{ending}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    plot_study(
        output / f"{table.study.name}.png", f"{table.study.title}: {table.data}", table.metric,
        [(row.variant, row.cost.patches, row.cost.macs / 1e9, row.scores) for row in table.rows if row.scores],
    )  # fmt: skip


def _standing(trial: Trial, result: dict[str, Any], metric: str) -> float:
    if result["status"] == "stopped":
        return headline_value(read_history(trial.history)[-1])
    return from_json_numbers(result["metrics"][f"seed-{trial.seed}"])[metric]


def _data(trial: Trial, index: ShardIndex) -> str:
    data = trial.settings.data
    name = "audio made by the project" if data.source == "synthetic" else Path(data.source or "data").name
    train = sum(index.splits[split].kept for split in data.train_splits)
    return f"{name}, {train} training and {index.splits[data.test_split].kept} test clips"


def _shown(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    spread = f" {PLUS_MINUS} {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.3f}{spread}"
