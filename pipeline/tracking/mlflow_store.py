"""MLflow's tracking: the store, runs, metrics that follow a training, artifacts.

Training never waits for the tracker or dies with it: what a run logs is tried, and a failure is one line on stderr.
"""

from __future__ import annotations

import logging
import os
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import filelock

from pipeline.tracking import mlflow_environment  # noqa: F401  # before mlflow, which reads it

# isort: split
import mlflow
from mlflow import MlflowClient

from ast_core.errors import UserError
from ast_core.redaction import without_secrets

ResultT = TypeVar("ResultT")
SQLITE = "sqlite:///"
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
    database = sqlite_file(uri)
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


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite store, None for any other URI."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def try_or_warn(what: str, action: Callable[[], ResultT], otherwise: ResultT) -> ResultT:
    """Return what `action` returns; if it fails, warn that `what` and return `otherwise`."""
    try:
        return action()
    except Exception as error:
        warn(f"{what} ({first_line(error)})")
        return otherwise


def warn(sentence: str) -> None:
    """Print one line on stderr, without passwords."""
    print(f"MLflow: {without_secrets(sentence)}.", file=sys.stderr)


def first_line(error: BaseException) -> str:
    """The first line of an error, without its full stop and passwords."""
    return (without_secrets(str(error)).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
