"""One trial of a study: Ray Tune trains, combines and tests a member in a run folder of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ray import tune
from rich.console import Console

from ast_core.config import Recipe
from ast_core.errors import UserError
from ast_core.serialization import from_dict, to_dict, to_identity
from ast_core.storage.json_files import read_hashed_json, sha256_of_json, write_hashed_json
from ast_core.storage.object_store import ObjectStore
from pipeline.cli.command_line import select_settings
from pipeline.cli.stages import CombineSettings, EvaluateSettings, RunSettings, TrainSettings
from pipeline.combine import combine
from pipeline.evaluate import READS, measure_bundles, select_clips
from pipeline.reporting.history import headline_value, read_history
from pipeline.reporting.poller import Poller
from pipeline.run_folder import sync
from pipeline.run_folder.layout import RunFolder
from pipeline.run_folder.opened import opened
from pipeline.scoring.results import from_json_numbers
from pipeline.tracking import runs
from pipeline.tracking.run_note import read_run_note
from pipeline.train import train

RESULT = "trial.json"
SCORE = "score"
"""Name of the value that Ray Tune compares: the headline metric on the held-out split of training."""

Status = Literal["finished", "stopped", "failed"]
"""How a trial ended: tested, stopped early by ASHA, or with an error that the user must fix."""


@dataclass(frozen=True)
class TrialResult:
    """The content of `trial.json`, which has only the keys that its status needs."""

    IGNORES_UNKNOWN_KEYS: ClassVar = True

    identity: str
    """Hash of the recipe and the data, `Trial.identity`."""
    status: Status
    variant: str
    seed: int
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Metrics of a finished trial's bundles, by bundle; None where one is not defined."""
    epochs: int = 0
    """Number of epochs of a stopped trial."""
    seconds: float = 0.0
    """Training time of a finished or stopped trial."""
    reason: str = ""
    """Error of a failed trial."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values, without the keys that other statuses need."""
        values = to_dict(self)
        return {
            key: value for key, value in values.items() if value or key in {"identity", "status", "variant", "seed"}
        }


@dataclass(frozen=True)
class Trial:
    """A variant of a study with one seed."""

    variant: str
    settings: RunSettings
    """Settings with one seed and this trial's own run folder."""
    data_hash: str
    """Hash of the shards' data."""
    parent_run: str
    """MLflow run of the study; "" if the tracker cannot be reached."""
    stores: tuple[ObjectStore, ...] = ()
    """Object stores whose working copies are the study's folders."""

    @property
    def seed(self) -> int:
        """The trial's only seed."""
        return self.settings.ensemble.seeds[0]

    @property
    def name(self) -> str:
        """Name in messages and tables."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Run folder of the trial."""
        return self.settings.run_dir

    @property
    def history(self) -> Path:
        """File with one row an epoch of the training."""
        return RunFolder.of(self.settings).member(self.seed).history

    @property
    def identity(self) -> str:
        """Hash of the recipe and the data; a stored result counts only if it has the same hash."""
        recipe = {f.name: to_identity(getattr(self.settings, f.name)) for f in dataclasses.fields(Recipe)}
        return sha256_of_json({"recipe": {**recipe, "prepare": None}, "data_hash": self.data_hash})

    def load_result(self) -> TrialResult | None:
        """Return the stored result, or None if the trial failed or had other settings or data.

        Raises:
            UserError: the result is this trial's, but a value is missing or has the wrong type.
            DamagedError: a byte of the file changed.
        """
        path = self.folder / RESULT
        values = read_hashed_json(path, "Trial's result") if path.is_file() else {}
        if values.get("identity") != self.identity:
            return None
        try:
            found = from_dict(TrialResult, values)
        except UserError as error:
            raise UserError(
                f"{path} does not hold a trial's result: {error} Remove it and run search again."
            ) from error
        return found if found.status != "failed" else None

    def read_score(self) -> float | None:
        """Return the last epoch's score, which Ray Tune compares; None if the trial failed or has no epoch."""
        rows = read_history(self.history)
        failed = (self.folder / RESULT).is_file() and self.load_result() is None
        score = headline_value(rows[-1]) if rows and not failed else math.nan
        return score if math.isfinite(score) else None

    def write_result(
        self,
        status: Status,
        *,
        metrics: dict[str, dict[str, float | None]] | None = None,
        epochs: int = 0,
        seconds: float = 0.0,
        reason: str = "",
    ) -> None:
        """Commit the trial's result to `trial.json`."""
        result = TrialResult(self.identity, status, self.variant, self.seed, metrics or {}, epochs, seconds, reason)
        write_hashed_json(self.folder / RESULT, result.to_json())


def run_trial(config: dict[str, Any]) -> None:
    """Train or resume, combine, test and commit the result, reporting each epoch's score to Ray Tune.

    An error that the user must fix becomes the trial's result, and the study's table shows it.
    Ray Tune retries after any other error.
    """
    trial: Trial = config["trial"]
    sync.attach_stores(trial.stores)
    with _log_to(trial.folder / "log.txt"):
        try:
            with Poller(0.5, _EpochReporter(trial.history).report):
                train(_train_settings(trial))
            if trial.load_result() is None:
                _test(trial)
        except (UserError, SystemExit) as error:
            Console().print(f"Failed: {error}", markup=False)
            trial.write_result("failed", reason=str(error))


def _train_settings(trial: Trial) -> TrainSettings:
    """Return the settings of the trial's only training."""
    member = select_settings(trial.settings, TrainSettings)
    return dataclasses.replace(member, seed=trial.seed, parent_run=trial.parent_run)


def _test(trial: Trial) -> None:
    """Combine and test the trial's bundles, and commit and log the result."""
    combine(select_settings(trial.settings, CombineSettings))
    settings = select_settings(trial.settings, EvaluateSettings)
    with opened(settings, READS, [settings.data.test_split], exclusive="evaluate") as run:
        results = measure_bundles(settings, run, select_clips(settings, run))
    metrics = {name: result.metrics for name, result in results.items()}
    flat = {f"{name}.{key}": v for name, values in metrics.items() for key, v in from_json_numbers(values).items()}
    run_id = read_run_note(trial.history.parent)
    runs.log_metrics(run_id, flat)
    runs.log_artifacts(run_id, run.evaluation, under="evaluation")
    trial.write_result("finished", metrics=metrics, seconds=sum(row["seconds"] for row in read_history(trial.history)))


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send the stages' output to the trial's log, because the screen shows the study's progress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


class _EpochReporter:
    """Reports each epoch of the stored curve to Ray Tune, including those before a resume.

    Ray Tune may stop the trial at any report. It then ends this process; the trained epochs are on disk.
    """

    def __init__(self, history: Path) -> None:
        self._history = history
        self._reported = 0

    def report(self) -> None:
        """Report the epochs that are new."""
        for row in read_history(self._history)[self._reported :]:
            tune.report({"epoch": int(row["epoch"]), SCORE: headline_value(row)})
            self._reported += 1
