"""Send a training's metrics to MLflow while they grow on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.tracking import mlflow_environment  # noqa: F401  # before mlflow, which reads it

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipeline.reporting.poller import Poller
from pipeline.tracking.mlflow_store import first_line, warn


class MetricsFollower:
    """Logs a training's `metrics.jsonl` while it grows: each epoch once, at step = epoch, over all resumes.

    An epoch goes to the tracker as one batch with `epoch` in it; what the tracker then has says where to go on, so
    nothing is lost or doubled if it was away.

    Args:
        run_id: of the run; with "" nothing is done.
        history: the JSON lines; may not be there yet.
        every_s: seconds between looks.
    """

    def __init__(self, run_id: str, history: Path, every_s: float = 1.0) -> None:
        self._run_id = run_id
        self._history = history
        self._logged: int | None = None  # last epoch that the tracker has; None when it must be asked
        self._first_ms = 0
        self._warned = False
        self._poller = Poller(every_s, self._catch_up)

    def __enter__(self) -> Self:
        """Start to follow."""
        self._poller.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Log what is left and stop."""
        self._poller.__exit__(kind, error, trace)

    def _catch_up(self) -> None:
        if not self._run_id:
            return
        try:
            rows = _rows(self._history)
            if self._logged is None:
                self._ask()
            clock_ms = float(self._first_ms)
            for row in rows:
                # Made of the run's start and the rows' own seconds: a batch sent twice is the same to a database.
                clock_ms += 1000 * row.get("seconds", 0.0)
                if row["epoch"] > (self._logged or 0):
                    self._send(row, int(clock_ms))
        except Exception as error:
            self._logged = None
            if not self._warned:
                warn(f"epochs are not logged for now ({first_line(error)}); they are kept in {self._history}")
            self._warned = True

    def _ask(self) -> None:
        run = MlflowClient().get_run(self._run_id)
        self._first_ms = run.info.start_time
        self._logged = int(run.data.metrics.get("epoch", 0))

    def _send(self, row: dict[str, Any], clock_ms: int) -> None:
        epoch = int(row["epoch"])
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        batch = [Metric(key, value, clock_ms, epoch) for key, value in numbers.items()]
        MlflowClient().log_batch(self._run_id, metrics=batch)
        self._logged = epoch


def _rows(history: Path) -> list[dict[str, Any]]:
    """The whole lines of the history; a last one without its end is left for later."""
    if not history.is_file():
        return []
    text = history.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]
