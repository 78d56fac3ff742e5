"""The progress bars of trainings and of lists of recordings, and the table at a training's end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.reporting.history import headline, read_history
from pipeline.reporting.poller import Poller


class EpochBar:
    """A progress bar over epochs that reads `metrics.jsonl`, so it shows a training on any node."""

    def __init__(self, title: str, history: Path, epochs: int) -> None:
        self._history = history
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[news]}"), console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task(title, total=epochs, news="the workers start")
        self._poller = Poller(0.5, self._show)

    def __enter__(self) -> Self:
        """Start the progress bar."""
        self._progress.start()
        self._poller.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last state and stop the progress bar."""
        self._poller.__exit__(kind, error, trace)
        self._progress.stop()

    def _show(self) -> None:
        rows = read_history(self._history)
        if rows:
            news = f"loss {rows[-1]['train_loss']:.4f}  {headline(rows[-1])}"
            self._progress.update(self._task, completed=len(rows), news=news)


def metrics_table(title: str, history: Path) -> Table:
    """Return the training curve as a table with the first, every fifth and the last epoch."""
    rows = read_history(history)
    table = Table(title=title)
    for column in ("epoch", "train loss", "rate", "score", "seconds", "clips/s"):
        table.add_column(column, justify="right")
    for row in [row for n, row in enumerate(rows) if n == 0 or row["epoch"] % 5 == 0 or n == len(rows) - 1]:
        table.add_row(
            f"{row['epoch']:.0f}", f"{row['train_loss']:.4f}", f"{row['learning_rate']:.2g}", headline(row),
            f"{row['seconds']:.1f}", f"{row['clips_per_s']:.1f}",
        )  # fmt: skip
    return table


@contextlib.contextmanager
def show_recordings(stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over recordings with the remaining time on stderr; yield the function that advances it."""
    columns = (TextColumn(stage), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(stage, total=total)
        yield lambda count: progress.advance(bar, count)
