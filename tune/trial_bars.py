"""Progress bars of a running study: each trial's epochs and score, read from the trials' folders."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipeline.reporting.history import headline, read_history
from pipeline.reporting.poller import Poller
from tune.trial import Trial


class TrialBars:
    """One bar for the study, one bar for each running trial, and one line for each ended trial.

    Args:
        trials: trials of the study; TPE's list grows while the study runs.
        total: number of trials at the end.
    """

    def __init__(self, trials: Sequence[Trial], total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[news]}"), console=Console(stderr=True),
        )  # fmt: skip
        self._trials = trials
        self._ended = {trial.name for trial in trials if trial.load_result()}
        self._total_bar = self._progress.add_task("trials", total=total, completed=len(self._ended), news="")
        self._bars: dict[str, TaskID] = {}
        self._poller = Poller(1.0, self._show)

    def __enter__(self) -> Self:
        """Start the bars and the thread that updates them."""
        self._progress.start()
        self._poller.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last state and stop the bars."""
        self._poller.__exit__(kind, error, trace)
        self._progress.stop()

    def _show(self) -> None:
        for trial in tuple(self._trials):
            name = trial.name
            if name in self._ended:
                continue
            if name not in self._bars:
                epochs = trial.settings.optim.epochs
                self._bars[name] = self._progress.add_task(name, total=epochs, visible=False, news="")
            rows = read_history(trial.history)
            if rows:
                news = headline(rows[-1])
                self._progress.update(self._bars[name], completed=len(rows), visible=True, news=news)
            result = trial.load_result()
            if result:
                self._ended.add(name)
                self._progress.update(self._bars[name], visible=False)
                self._progress.console.print(f"{name}: {result.status} after {len(rows)} epochs, {news}")
        self._progress.update(self._total_bar, completed=len(self._ended))
