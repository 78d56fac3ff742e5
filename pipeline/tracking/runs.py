"""MLflow runs: starting or resuming a run, logging to it, and reading from it."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from pipeline.tracking import mlflow_environment  # noqa: F401  # before mlflow, which reads it

# isort: split
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from ast_core.errors import UserError
from ast_core.redaction import without_secrets
from ast_core.storage.atomic_files import atomic_write
from pipeline.tracking.mlflow_store import first_line, open_store, sqlite_file, try_or_warn

PARENT_RUN_TAG = "mlflow.parentRunId"
"""The tag that names the parent of a run."""


PARAM_CHARACTERS = 500
"""Length to which values are cut; the run folder has the complete settings."""


BATCH = 100
"""MLflow's limit of parameters or tags in one request."""


@contextlib.contextmanager
def start_run(experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[str]:
    """Resume the newest MLflow run with this name and these tags, or start a new one; record system metrics.

    Args:
        experiment: created if it does not exist; with sqlite its artifacts are in a folder next to the database.
        name: name of the run.
        params: nested settings; `{"optim": {"epochs": 5}}` is logged as `optim.epochs`, without passwords.
        tags: tags that identify the run; a call with the same tags resumes the same run.

    Yields:
        The run's id, or "" if the tracker cannot be reached. The functions that take a run's id do nothing with "".

    Raises:
        UserError: the experiment was deleted.
    """
    run_id = try_or_warn("the run could not be started", lambda: _begin(experiment, name, params, tags), "")
    status = RunStatus.FAILED
    try:
        yield run_id
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        if run_id:
            try_or_warn("the run could not be ended", lambda: mlflow.end_run(RunStatus.to_string(status)), None)


def open_experiment(store: str, name: str) -> None:
    """Open a tracking store and check that the experiment was not deleted, before the work of a stage.

    A tracker that cannot be reached is no error.

    Raises:
        UserError: the experiment was deleted, or the store cannot be opened.
    """
    open_store(store)
    found = try_or_warn(
        f"the experiment {name} could not be looked up", lambda: MlflowClient().get_experiment_by_name(name), None
    )
    if found is not None and found.lifecycle_stage != "active":
        raise _deleted(found)


def folder_id(folder: Path) -> str:
    """Return the random name that a folder keeps in `.folder-id`, and create it at the first call.

    As a tag it distinguishes a resumed run from a new run.
    """
    path = folder / ".folder-id"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if not path.is_file() or not path.read_text(encoding="utf-8"):
            with atomic_write(path) as temporary:
                temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
        return path.read_text(encoding="utf-8")


def log_metrics(run_id: str, metrics: Mapping[str, float]) -> None:
    """Log the final numbers that the run does not have yet. Never raises.

    The names of a study's variants may have characters that MLflow refuses in a metric's name:
    `learning_rate=0.001` becomes `learning_rate:0.001`, other characters become a space.
    """

    def log() -> None:
        known = MlflowClient().get_run(run_id).data.metrics
        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w.\- :/]", " ", key.replace("=", ":")): value for key, value in metrics.items()}
        new = {key: value for key, value in named.items() if math.isfinite(value) and known.get(key) != value}
        if new:
            MlflowClient().log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in new.items()])

    if run_id:
        try_or_warn("metrics were not logged", log, None)


def log_artifacts(run_id: str, path: Path, under: str | None = None) -> None:
    """Copy a file, or the content of a folder, to the run's artifacts. Never raises.

    Args:
        run_id: id of the run; nothing is logged with "".
        path: file or folder.
        under: folder among the artifacts, by default their root.
    """

    def log() -> None:
        if path.is_dir():
            MlflowClient().log_artifacts(run_id, str(path), under)
        else:
            MlflowClient().log_artifact(run_id, str(path), under)

    if run_id:
        try_or_warn(f"{path} was not logged", log, None)


def newest_run(experiment: str, tags: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Return id and last metrics of the newest run with these tags.

    Return "" and no metrics if no run has these tags or the tracker cannot be reached.
    """

    def look() -> tuple[str, dict[str, float]]:
        found = MlflowClient().get_experiment_by_name(experiment)
        filters = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        newest = ["attributes.start_time DESC"]
        runs = (
            MlflowClient().search_runs([found.experiment_id], filters, max_results=1, order_by=newest) if found else []
        )
        return (str(runs[0].info.run_id), dict(runs[0].data.metrics)) if runs else ("", {})

    nothing: tuple[str, dict[str, float]] = ("", {})
    return try_or_warn(f"the experiment {experiment} could not be searched", look, nothing)


def fetch_artifact(run_id: str, artifact: str, to: Path) -> None:
    """Copy one artifact of a run to a file; raise UserError if it does not exist or cannot be fetched."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copyfile(MlflowClient().download_artifacts(run_id, artifact, scratch), to)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"The artifact {artifact} of the MLflow run {run_id} cannot be fetched: {first_line(error)}. Check that "
            "the run has it and that the tracker answers."
        ) from error


def _begin(experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    experiment_id = _find_or_create_experiment(experiment)
    known = _find_run(experiment_id, name, tags)
    if importlib.util.find_spec("psutil"):
        mlflow.enable_system_metrics_logging()
    run = mlflow.start_run(run_id=known, experiment_id=experiment_id, run_name=name, tags=dict(tags))
    _log_params(run.info.run_id, _flatten(params), run.data.params)
    return str(run.info.run_id)


def _find_or_create_experiment(name: str) -> str:
    """Return the id of the experiment, and create it if it does not exist.

    If two processes create it at the same time, the second one finds the experiment of the first.
    """
    database = sqlite_file(mlflow.get_tracking_uri())
    where = None if database is None else (database.parent / f"{database.stem}-artifacts" / name).absolute().as_uri()
    found = MlflowClient().get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):
            return str(MlflowClient().create_experiment(name, artifact_location=where))
        found = MlflowClient().get_experiment_by_name(name)
    if found is None:
        raise MlflowException(f"the experiment {name} could not be created")
    if found.lifecycle_stage != "active":
        raise _deleted(found)
    return str(found.experiment_id)


def _deleted(experiment: Experiment) -> UserError:
    """Return the error for an experiment that was deleted, with the command that restores it."""
    command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    return UserError(
        f"The MLflow experiment {experiment.name} was deleted. Restore it with "
        f"`MLFLOW_TRACKING_URI={shlex.quote(mlflow.get_tracking_uri())} {command}`, or use another --experiment."
    )


def _find_run(experiment_id: str, name: str, tags: Mapping[str, str]) -> str | None:
    wanted = {"mlflow.runName": name, **tags}
    if any("'" in value and '"' in value for value in wanted.values()):
        return None  # MLflow's filters cannot quote such a value: start a new run
    quoted = [f"tags.`{key}` = " + (f'"{value}"' if "'" in value else f"'{value}'") for key, value in wanted.items()]
    runs = MlflowClient().search_runs([experiment_id], " and ".join(quoted), max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _log_params(run_id: str, params: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Log parameters. MLflow cannot change a parameter: a value that a resume changed becomes a tag `changed.KEY`."""
    client = MlflowClient()
    new = [Param(key, value) for key, value in params.items() if key not in known]
    changed = [RunTag(f"changed.{key}", value) for key, value in params.items() if known.get(key, value) != value]
    for first in range(0, len(new), BATCH):
        client.log_batch(run_id, params=new[first : first + BATCH])
    for first in range(0, len(changed), BATCH):
        client.log_batch(run_id, tags=changed[first : first + BATCH])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = without_secrets(str(value))[:PARAM_CHARACTERS]
    return flat
