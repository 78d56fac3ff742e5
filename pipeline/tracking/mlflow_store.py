"""MLflow's tracking: the store, runs, metrics that follow a training, artifacts.

Training never waits for the tracker or dies with it: what a run logs is tried, and a failure is one line on stderr.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import filelock

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 waits minutes for a tracker that is gone
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)  # mlflow reads them when it is imported

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from ast_core.errors import UserError
from ast_core.redaction import without_secrets
from ast_core.storage.atomic_files import committed

ResultT = TypeVar("ResultT")
SQLITE = "sqlite:///"
PARENT = "mlflow.parentRunId"
"""The tag that puts a run under another one."""
PARAM_CHARACTERS = 500
"""Longer values are cut; the whole settings are in the run folder."""
BATCH = 100
"""Parameters or tags that one request may hold."""
DATABASE_TRIES = 5
"""Within 3 s."""
_LENT: dict[str, str] = {}
"""The login that this process put into its environment."""


def open_store(uri: str) -> None:
    """Use a tracking store; a sqlite file is made, with all its tables, by one process at a time.

    Args:
        uri: `sqlite:////folder/mlflow.db`, or a server's `http://host:port`. A server's `http://user:password@host`
            is put where MLflow looks for it, so that no address that it prints or complains of has it.

    Raises:
        UserError: the store is of another MLflow version, damaged, or cannot be written.
    """
    for source in ("mlflow", "alembic"):
        logging.getLogger(source).setLevel(logging.ERROR)  # their notes would drown the stage's own lines
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs a traceback of what it raises
    uri = _without_login(uri)
    if urllib.parse.urlsplit(uri).scheme not in {"http", "https"}:
        _wait_briefly()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    database = _database(uri)
    if database is None:
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        # Processes that race to make the tables leave a store that none can open.
        with filelock.FileLock(f"{database}.lock"):
            client = MlflowClient()
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except Exception as error:
        raise UserError(
            f"The MLflow store {uri} cannot be opened: {first_line(error)}. If another MLflow version made it, run "
            f"`mlflow db upgrade {uri}`; else mend it or give another --tracking."
        ) from error


@contextlib.contextmanager
def start_run(experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[str]:
    """The newest MLflow run with this name and these tags, gone on with, or a new one; samples system metrics.

    Args:
        experiment: made if it is not there; on sqlite its artifacts lie in a folder beside the database.
        name: of the run.
        params: settings, nested; `{"optim": {"epochs": 5}}` is logged as `optim.epochs`, without passwords.
        tags: what the run is; the same again is the same run.

    Yields:
        The run's id, or "" if the tracker cannot be reached: whatever takes a run's id then does nothing.
    """
    run_id = _tried("the run could not be started", lambda: _begin(experiment, name, params, tags), "")
    status = RunStatus.FAILED
    try:
        yield run_id
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        if run_id:
            _tried("the run could not be ended", lambda: mlflow.end_run(RunStatus.to_string(status)), None)


def folder_id(folder: Path) -> str:
    """A random name that a folder keeps (`.folder-id`): as a tag, it tells a resumed run from one started anew."""
    path = folder / ".folder-id"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if not path.is_file() or not path.read_text(encoding="utf-8"):
            with committed(path) as beside:
                beside.write_text(uuid.uuid4().hex, encoding="utf-8")
        return path.read_text(encoding="utf-8")


def log_metrics(run_id: str, metrics: Mapping[str, float]) -> None:
    """Log final numbers, those that the run does not have already. Never raises.

    A study's variants may have names that MLflow takes for none of a metric: `learning_rate=0.001` becomes
    `learning_rate:0.001`, other characters a blank.
    """

    def log() -> None:
        known = MlflowClient().get_run(run_id).data.metrics
        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w.\- :/]", " ", key.replace("=", ":")): value for key, value in metrics.items()}
        new = {key: value for key, value in named.items() if math.isfinite(value) and known.get(key) != value}
        if new:
            MlflowClient().log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in new.items()])

    if run_id:
        _tried("metrics were not logged", log, None)


def log_artifacts(run_id: str, path: Path, under: str | None = None) -> None:
    """Copy a file, or a folder's content, to the run's artifacts. Never raises.

    Args:
        run_id: of the run.
        path: file or folder.
        under: folder among the artifacts; their root by default.
    """

    def log() -> None:
        if path.is_dir():
            MlflowClient().log_artifacts(run_id, str(path), under)
        else:
            MlflowClient().log_artifact(run_id, str(path), under)

    if run_id:
        _tried(f"{path} was not logged", log, None)


def newest_run(experiment: str, tags: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Id and last metrics of the newest run with these tags; "" and none if there is none or the tracker is away."""

    def look() -> tuple[str, dict[str, float]]:
        found = MlflowClient().get_experiment_by_name(experiment)
        filters = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        newest = ["attributes.start_time DESC"]
        runs = (
            MlflowClient().search_runs([found.experiment_id], filters, max_results=1, order_by=newest) if found else []
        )
        return (str(runs[0].info.run_id), dict(runs[0].data.metrics)) if runs else ("", {})

    nothing: tuple[str, dict[str, float]] = ("", {})
    return _tried(f"{experiment} could not be searched", look, nothing)


def fetch_artifact(run_id: str, artifact: str, to: Path) -> None:
    """Copy one artifact of a run to a file. UserError if it is not there or cannot be fetched."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copyfile(MlflowClient().download_artifacts(run_id, artifact, scratch), to)
    except (MlflowException, OSError) as error:
        raise UserError(f"{artifact} of MLflow's run {run_id} cannot be fetched: {first_line(error)}.") from error


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
        self._every_s = every_s
        self._logged: int | None = None  # last epoch that the tracker has; None when it must be asked
        self._first_ms = 0
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="metrics-follower", daemon=True)

    def __enter__(self) -> Self:
        """Start to follow."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Log what is left and stop."""
        self._stop.set()
        self._thread.join()
        self._catch_up()

    def _follow(self) -> None:
        while not self._stop.wait(self._every_s):
            self._catch_up()

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
                _warn(f"epochs are not logged for now ({first_line(error)}); they are kept in {self._history}")
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


def _begin(experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    experiment_id = _experiment(experiment)
    known = _run_with(experiment_id, name, tags)
    if importlib.util.find_spec("psutil"):
        mlflow.enable_system_metrics_logging()
    run = mlflow.start_run(run_id=known, experiment_id=experiment_id, run_name=name, tags=dict(tags))
    _log_params(run.info.run_id, _flat(params), run.data.params)
    return str(run.info.run_id)


def _experiment(name: str) -> str:
    """Id of the experiment. Two processes may make it at once: the second finds the first's."""
    database = _database(mlflow.get_tracking_uri())
    where = None if database is None else (database.parent / f"{database.stem}-artifacts" / name).absolute().as_uri()
    found = MlflowClient().get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):
            return str(MlflowClient().create_experiment(name, artifact_location=where))
        found = MlflowClient().get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise UserError(f"the MLflow experiment {name} was deleted; restore it or give another --experiment")
    return str(found.experiment_id)


def _run_with(experiment_id: str, name: str, tags: Mapping[str, str]) -> str | None:
    wanted = {"mlflow.runName": name, **tags}
    if any("'" in value and '"' in value for value in wanted.values()):
        return None  # MLflow's filters cannot quote it: a new run then
    quoted = [f"tags.`{key}` = " + (f'"{value}"' if "'" in value else f"'{value}'") for key, value in wanted.items()]
    runs = MlflowClient().search_runs([experiment_id], " and ".join(quoted), max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _log_params(run_id: str, params: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Parameters cannot change in MLflow: what a resume was given otherwise becomes a tag."""
    client = MlflowClient()
    new = [Param(key, value) for key, value in params.items() if key not in known]
    changed = [RunTag(f"changed.{key}", value) for key, value in params.items() if known.get(key, value) != value]
    for first in range(0, len(new), BATCH):
        client.log_batch(run_id, params=new[first : first + BATCH])
    for first in range(0, len(changed), BATCH):
        client.log_batch(run_id, tags=changed[first : first + BATCH])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = without_secrets(str(value))[:PARAM_CHARACTERS]
    return flat


def _rows(history: Path) -> list[dict[str, Any]]:
    """The whole lines of the history; a last one without its end is left for later."""
    if not history.is_file():
        return []
    text = history.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]


def _wait_briefly() -> None:
    """MLflow waits 100 s for a database that is gone, at every call, and a training's end would wait with it."""
    from mlflow.store.db import utils  # noqa: PLC0415 - SQLAlchemy, which takes its time and no server's address needs

    utils.MAX_RETRY_COUNT = DATABASE_TRIES


def _without_login(uri: str) -> str:
    """A server's address, its user and password in the environment; what another address brought there goes."""
    for name in [name for name, value in _LENT.items() if os.environ.get(name) == value]:
        del os.environ[name]
    _LENT.clear()
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in {"http", "https"} or parts.password is None:
        return uri
    _LENT["MLFLOW_TRACKING_USERNAME"] = urllib.parse.unquote(parts.username or "")
    _LENT["MLFLOW_TRACKING_PASSWORD"] = urllib.parse.unquote(parts.password)
    os.environ.update(_LENT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _tried(what: str, action: Callable[[], ResultT], otherwise: ResultT) -> ResultT:
    try:
        return action()
    except Exception as error:
        _warn(f"{what} ({first_line(error)})")
        return otherwise


def _warn(sentence: str) -> None:
    print(f"MLflow: {without_secrets(sentence)}.", file=sys.stderr)


def first_line(error: BaseException) -> str:
    """The first line of an error, without its full stop and passwords."""
    return (without_secrets(str(error)).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
