"""What a run of `predict` did: counts, the first rows, and what the user sees of them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ast_core.evaluation.prediction_table import Prediction, from_table
from pipeline.prediction.recording_chunks import ChunkResult, count_reasons
from pipeline.reporting.predictions import predictions_table

SHOWN = 20
"""Recordings and labels that are shown at most."""


@dataclass
class PredictSummary:
    """Counts of a run, which balance: listed = known + predicted + refused."""

    listed: int = 0
    """Recordings that the inputs name."""
    known: int = 0
    """Recordings that had a row in the output before."""
    predicted: int = 0
    refused: int = 0
    length_s: float = 0.0
    """Length of all recordings that this run predicted."""
    seconds: float = 0.0
    """Time of this run from the list to the last row."""
    output: str = ""
    """File, folder or URI that holds the rows; "" for none."""
    labels: Counter[str] = field(default_factory=Counter)
    """Recordings of this run by their most probable label."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Refused recordings of this run by reason."""
    first: tuple[Prediction, ...] = ()
    """Rows of the first recordings of this run, `SHOWN` at most."""
    _places: tuple[int, ...] = ()
    """Place of each first row's chunk in the list."""

    @property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Probabilities of the first recordings, float32 [C], by name."""
        return {own.path: own.probabilities_C for own in self.first if own.probabilities_C is not None}

    @property
    def balances(self) -> bool:
        """Whether each listed recording has exactly one outcome."""
        return self.listed == self.known + self.predicted + self.refused

    def add(self, result: ChunkResult) -> None:
        """Count a chunk, and keep its rows if they are among the first."""
        self.refused += result.refused
        self.predicted += result.recordings - result.refused
        self.length_s += result.length_s
        self.labels.update(result.labels)
        count_reasons(self.reasons, result.reasons)
        if len(self.first) < SHOWN or result.number < self._places[-1]:
            table = pyarrow.parquet.read_table(io.BytesIO(result.rows)).slice(0, SHOWN)
            places = [*self._places, *([result.number] * len(table))]
            rows = [*self.first, *from_table(table)]
            order = sorted(range(len(rows)), key=places.__getitem__)[:SHOWN]
            self.first = tuple(rows[n] for n in order)
            self._places = tuple(places[n] for n in order)

    def show(self, classes: Sequence[str]) -> None:
        """Print the first rows; of many recordings also the labels, the reasons and the speed; then the counts."""
        console = Console(soft_wrap=True, highlight=False)
        if self.first:
            Console().print(predictions_table(self.first, classes))
        if self.predicted + self.refused > SHOWN:
            console.print(f"These are the first {SHOWN}.")
            Console().print(count_table("most probable label", self.labels, "no label"))
            if self.reasons:
                Console().print(count_table("reason of refusal", self.reasons, ""))
            console.print(describe_speed(self.predicted + self.refused, self.length_s, self.seconds))
        known = f" + {self.known} with a row already" if self.known else ""
        console.print(f"{self.listed} files = {self.predicted} predicted + {self.refused} refused{known}")


def describe_speed(recordings: int, length_s: float, seconds: float) -> str:
    """Return the sentence for the speed of a run."""
    hours, least_s = length_s / 3600, max(seconds, 1e-9)
    return (
        f"{recordings} recordings with {hours:.2f} hours of audio in {seconds:.1f} s: {recordings / least_s:.1f} "
        f"recordings/s, {hours / least_s:.4f} hours of audio/s"
    )


def count_table(column: str, counts: Counter[str], empty: str) -> Table:
    """Return a table of the most frequent names and the sum of all others."""
    table = Table()
    table.add_column(column, overflow="fold")
    table.add_column("recordings", justify="right")
    for name, count in counts.most_common(SHOWN):
        table.add_row(escape(name or empty), str(count))
    rest = counts.total() - sum(count for _, count in counts.most_common(SHOWN))
    if rest:
        table.add_row("all others", str(rest), style="dim")
    return table
