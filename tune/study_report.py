"""A study's table and plot: our results next to the published ones, each with its data set."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rich.table
from matplotlib.figure import Figure
from rich.console import Console

from ast_core.errors import require
from ast_core.evaluation.metrics import headline_metric
from ast_core.model.cost import ModelCost, model_cost
from ast_core.shards.index import ShardIndex
from ast_core.storage.atomic_files import atomic_write
from pipeline.reporting.history import headline_value, read_history
from pipeline.reporting.plots import save_figure
from pipeline.scoring.results import from_json_numbers
from tune.studies import BALANCED, FULL, Study
from tune.trial import Trial, TrialResult

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
PAPERS = {BALANCED: "paper bal.", FULL: "paper full"}
"""Headings of the published numbers."""


@dataclass(frozen=True)
class Row:
    """One variant of a study's table."""

    variant: str
    cost: ModelCost
    scores: tuple[float, ...]
    """Test score of each seed's bundle."""
    last: tuple[float, ...]
    """Score of each seed's last epoch on the held-out split."""
    seconds: float
    """Mean training time of a trial."""
    published: dict[str, float] = field(default_factory=dict)
    """Published results by data set."""
    stopped: int = 0
    """Number of trials that were stopped early; their score is the one of their last epoch."""
    failed: int = 0
    """Number of trials without a result."""
    sampler: str = ""
    """Sampler that drew the variant; empty for a variant that the study names."""

    @property
    def mean(self) -> float:
        """Mean score over seeds; NaN without a finished trial."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; NaN with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan

    @property
    def shown(self) -> str:
        """Text of mean and standard deviation, with the number of stopped and failed trials."""
        notes = [f"{self.stopped} stopped early"] * bool(self.stopped) + [f"{self.failed} failed"] * bool(self.failed)
        return _format_scores(self.scores) + (f" ({', '.join(notes)})" if notes else "")

    @property
    def logged(self) -> dict[str, float]:
        """Metrics for MLflow by name."""
        return {"mean": self.mean, "std": self.std, "patches": float(self.cost.patches)}


@dataclass(frozen=True)
class Table:
    """The results of a study."""

    study: Study
    metric: str
    """Name of the metric: `accuracy` or `mAP`."""
    data: str
    """Description of the data that our results were measured on."""
    rows: tuple[Row, ...]

    def best(self) -> Row:
        """Return the row with the highest mean; raise UserError if no trial finished."""
        done = [row for row in self.rows if row.scores]
        require(bool(done), f"No trial of the study {self.study.name} finished. Fix the cause in the trials' log.txt.")
        return max(done, key=lambda row: row.mean)

    def columns(self) -> dict[str, Callable[[Row], str]]:
        """Return the column headings and the function that formats each column of a row."""
        own: dict[str, Callable[[Row], str]] = {
            "variant": lambda row: row.variant,
            "patches": lambda row: str(row.cost.patches),
            "GMAC": lambda row: f"{row.cost.macs / 1e9:.3g}",
            "M par.": lambda row: f"{row.cost.parameters / 1e6:.3g}",
            self.metric: lambda row: row.shown,
            "last epoch": lambda row: _format_scores(row.last),
            "train s": lambda row: f"{row.seconds:.0f}",
        }
        if any(row.sampler for row in self.rows):
            own["drawn by"] = lambda row: row.sampler
        for name in (BALANCED, FULL):
            if any(name in row.published for row in self.rows):
                own[PAPERS[name]] = lambda row, name=name: (  # type: ignore[misc]
                    f"{row.published[name]:.3f}" if name in row.published else ""
                )
        return own

    @property
    def caption(self) -> str:
        """Sentence that says which numbers are ours and which are published."""
        note = f" {self.study.note}" if self.study.note else ""
        return (
            f"{self.metric} and last epoch are ours, on {self.data}; mean {PLUS_MINUS} standard deviation over seeds. "
            f"The paper's are mAP on AudioSet, trained on its balanced or its full set.{note}"
        )

    def show(self, console: Console) -> None:
        """Print the table, with the best row in bold."""
        best = max((row.mean for row in self.rows if row.scores), default=math.nan)
        table = rich.table.Table(title=self.study.title, caption=self.caption, caption_justify="left")
        for number, heading in enumerate(self.columns()):
            table.add_column(heading, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
        for row in self.rows:
            table.add_row(*(cell(row) for cell in self.columns().values()), style="bold" if row.mean == best else "")
        console.print(table)


def build_table(study: Study, trials: Sequence[Trial]) -> Table:
    """Build a table of the trials' results with one row a variant, in the study's order."""
    index = ShardIndex.load(trials[0].settings.shards)
    metric = headline_metric(index.single_label)
    rows = []
    for variant in study.variants:
        own = [trial for trial in trials if trial.variant == variant.name]
        results = [(trial, trial.load_result()) for trial in own]
        done = [(trial, result) for trial, result in results if result]
        settings = own[0].settings
        rows.append(
            Row(
                variant.name,
                model_cost(settings.model, settings.front_end, len(index.labels)),
                tuple(_read_score(trial, result, metric) for trial, result in done),
                tuple(headline_value(read_history(trial.history)[-1]) for trial, _ in done),
                statistics.fmean(result.seconds for _, result in done) if done else math.nan,
                dict(variant.published),
                sum(result.status == "stopped" for _, result in done),
                len(own) - len(done),
                variant.sampler,
            )
        )
    return Table(study, metric, _describe_data(trials[0], index), tuple(rows))


def write_report(folder: Path, table: Table) -> None:
    """Write `report/STUDY.csv`, `.md` and `.png` in the study's folder."""
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
    writer.writerow([*heads, f"paper {BALANCED}", f"paper {FULL}", "sampler"])
    for row in table.rows:
        size = (row.cost.patches, row.cost.macs, row.cost.parameters)
        scores = (" ".join(f"{value:.6g}" for value in values) for values in (row.scores, row.last))
        ours = (table.metric, row.mean, row.std, *scores, row.seconds, table.data)
        writer.writerow(
            [row.variant, *size, *ours, row.published.get(BALANCED, ""), row.published.get(FULL, ""), row.sampler]
        )
    output = folder / "report"
    for ending, content in ((".md", markdown), (".csv", text.getvalue())):
        with atomic_write(output / f"{table.study.name}{ending}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    _plot_scores(output / f"{table.study.name}.png", table)


def _plot_scores(path: Path, table: Table) -> None:
    """Draw each variant's scores and their mean over its number of patches and over its cost."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    by_patches, by_cost = figure.subplots(1, 2, sharey=True)
    for row in table.rows:
        if not row.scores:
            continue
        for axes, x in ((by_patches, float(row.cost.patches)), (by_cost, row.cost.macs / 1e9)):
            drawn = axes.scatter([x] * len(row.scores), row.scores, alpha=0.45, s=18)
            axes.plot([x], [row.mean], marker="D", color=drawn.get_facecolor()[0][:3])
            axes.annotate(row.variant, (x, row.mean), xytext=(6, 4), textcoords="offset points", fontsize=8)
    by_patches.set(xlabel="patches", ylabel=table.metric)
    by_cost.set(xlabel="GMAC a clip, forward")
    for axes in (by_patches, by_cost):
        axes.grid(alpha=0.3)
        axes.margins(x=0.2)
    figure.suptitle(f"{table.study.title}: {table.data}".replace("$", r"\$"), fontsize=10)
    save_figure(figure, path)


def _read_score(trial: Trial, result: TrialResult, metric: str) -> float:
    """Return the test score of a finished trial, or the last epoch's score of a stopped one."""
    if result.status == "stopped":
        return headline_value(read_history(trial.history)[-1])
    return from_json_numbers(result.metrics[f"seed-{trial.seed}"])[metric]


def _describe_data(trial: Trial, index: ShardIndex) -> str:
    """Return the name of the data and its numbers of clips."""
    data = trial.settings.data
    name = "audio made by the project" if data.source == "synthetic" else Path(data.source or "data").name
    train = sum(index.splits[split].kept for split in data.train_splits)
    return f"{name}, {train} training and {index.splits[data.test_split].kept} test clips"


def _format_scores(scores: Sequence[float]) -> str:
    """Return mean and standard deviation as text; empty without scores."""
    if not scores:
        return ""
    spread = f" {PLUS_MINUS} {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.3f}{spread}"
