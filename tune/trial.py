"""One trial of a study: a member trained, combined and tested in a run folder of its own, in an actor of Ray Tune."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from ast_core.config import Recipe
from ast_core.errors import UserError
from ast_core.serialization import to_dict
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
"""What Ray Tune compares: the headline metric of the held-out split, the validation split where there is one."""


@dataclass(frozen=True)
class Trial:
    """A variant with one seed."""

    variant: str
    settings: RunSettings
    """With one seed, and a run folder of this trial's own."""
    data_hash: str
    parent_run: str
    """MLflow run of the study; "" if the tracker is away."""
    stores: tuple[ObjectStore, ...] = ()
    """What the study's folders are working copies of."""

    @property
    def seed(self) -> int:
        """The trial's only seed."""
        return self.settings.ensemble.seeds[0]

    @property
    def name(self) -> str:
        """As shown."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Run folder."""
        return self.settings.run_dir

    @property
    def history(self) -> Path:
        """Curve of the training."""
        return RunFolder.of(self.settings).member(self.seed).history

    @property
    def identity(self) -> str:
        """What a stored result must be of to count as this trial's."""
        recipe = {f.name: to_dict(getattr(self.settings, f.name)) for f in dataclasses.fields(Recipe)}
        return sha256_of_json({"recipe": {**recipe, "prepare": None}, "data_hash": self.data_hash})

    def result(self) -> dict[str, Any] | None:
        """What it gave, if it was done with these very settings and data; a failure is nothing."""
        path = self.folder / RESULT
        found = read_hashed_json(path, "Trial's result") if path.is_file() else None
        return found if found and found["identity"] == self.identity and found["status"] != "failed" else None

    def note(self, status: str, **more: Any) -> None:
        """Commit its result."""
        write_hashed_json(
            self.folder / RESULT,
            {"identity": self.identity, "status": status, "variant": self.variant, "seed": self.seed, **more},
        )


def run_trial(config: dict[str, Any]) -> None:
    """What Ray Tune runs: train (or go on), combine, test, commit the result; report each epoch's score.

    What the user must mend is the trial's result, told in the study's table; anything else is Ray Tune's to retry.
    """
    trial: Trial = config["trial"]
    sync.attach_stores(trial.stores)
    with _log_to(trial.folder / "log.txt"):
        try:
            with Poller(0.5, _EpochReporter(trial.history).report):
                train(_train_settings(trial))
            if trial.result() is None:
                _test(trial)
        except (UserError, SystemExit) as error:
            Console().print(f"Failed: {error}", markup=False)
            trial.note("failed", reason=str(error))


def _train_settings(trial: Trial) -> TrainSettings:
    member = select_settings(trial.settings, TrainSettings)
    return dataclasses.replace(member, seed=trial.seed, parent_run=trial.parent_run)


def _test(trial: Trial) -> None:
    combine(select_settings(trial.settings, CombineSettings))
    settings = select_settings(trial.settings, EvaluateSettings)
    with opened(settings, READS, [settings.data.test_split], exclusive="evaluate") as run:
        results = measure_bundles(settings, run, select_clips(settings, run))
    metrics = {name: result["metrics"] for name, result in results.items()}
    flat = {f"{name}.{key}": v for name, values in metrics.items() for key, v in from_json_numbers(values).items()}
    run_id = read_run_note(trial.history.parent)
    runs.log_metrics(run_id, flat)
    runs.log_artifacts(run_id, run.evaluation, under="evaluation")
    trial.note("finished", metrics=metrics, seconds=sum(row["seconds"] for row in read_history(trial.history)))


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """What the stages say goes to the trial's log: the study's screen is for the study."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


class _EpochReporter:
    """Reports each epoch in a training's history to Ray Tune, from the first one, also after a resume.

    Ray Tune may stop the trial at any report: it then ends this process, and the training is on disk.
    """

    def __init__(self, history: Path) -> None:
        self._history = history
        self._reported = 0

    def report(self) -> None:
        """Report the epochs that are new."""
        for row in read_history(self._history)[self._reported :]:
            tune.report({"epoch": int(row["epoch"]), SCORE: headline_value(row)})
            self._reported += 1
