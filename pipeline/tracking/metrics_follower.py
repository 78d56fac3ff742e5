"""The thread that sends the metrics of a training to MLflow while the training writes them to disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.tracking import mlflow_environment  # noqa: F401  # before mlflow, which reads it

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipeline.reporting.history import EpochRow
from pipeline.reporting.poller import Poller
from pipeline.tracking.mlflow_store import first_line, warn


class MetricsFollower:
    """Follower of a training's `metrics.jsonl` that logs each epoch once, with the epoch as step, over all resumes.

    Each epoch is one batch that includes the metric `epoch`. After an outage of the tracker the follower asks it for
    the last `epoch` and continues there, so no epoch is lost or logged twice.

    Args:
        run_id: MLflow's id of the run; with "" the follower does nothing.
        history: path of `metrics.jsonl`; the file may not exist yet.
        every_s: seconds between two reads of the file.
    """

    def __init__(self, run_id: str, history: Path, every_s: float = 1.0) -> None:
        self._run_id = run_id
        self._history = history
        self._logged: int | None = None  # last epoch that the tracker has; None: ask the tracker
        self._first_ms = 0
        self._warned = False
        self._poller = Poller(every_s, self._catch_up)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._poller.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread and log the remaining epochs."""
        self._poller.__exit__(kind, error, trace)

    def _catch_up(self) -> None:
        if not self._run_id:
            return
        try:
            rows = _read_complete_rows(self._history)
            if self._logged is None:
                self._ask_for_last_epoch()
            clock_ms = float(self._first_ms)
            for row in rows:
                # The time is the run's start plus the seconds of the rows, not the clock: a batch that is sent twice is
                # then identical, and the database keeps it once.
                clock_ms += 1000 * row.get("seconds", 0.0)
                if row["epoch"] > (self._logged or 0):
                    self._send(row, int(clock_ms))
        except Exception as error:
            self._logged = None
            if not self._warned:
                warn(f"epochs are not logged for now ({first_line(error)}); they are kept in {self._history}")
            self._warned = True

    def _ask_for_last_epoch(self) -> None:
        run = MlflowClient().get_run(self._run_id)
        self._first_ms = run.info.start_time
        self._logged = int(run.data.metrics.get("epoch", 0))

    def _send(self, row: EpochRow, clock_ms: int) -> None:
        epoch = int(row["epoch"])
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        batch = [Metric(key, value, clock_ms, epoch) for key, value in numbers.items()]
        MlflowClient().log_batch(self._run_id, metrics=batch)
        self._logged = epoch


def _read_complete_rows(history: Path) -> list[EpochRow]:
    """Read the complete lines of the history; skip a last line that is still being written."""
    if not history.is_file():
        return []
    text = history.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]
