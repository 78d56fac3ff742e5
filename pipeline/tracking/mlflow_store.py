"""MLflow's tracking store, and the warnings that replace its errors.

A training neither waits for the tracker nor fails with it: if a run cannot log, it prints one line on stderr.
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
from pipeline.tracking.store_uri import SQLITE, resolve_store

ResultT = TypeVar("ResultT")
DATABASE_TRIES = 5
"""MLflow's attempts to connect to a database; five take at most 3 s."""
_LOGIN: dict[str, str] = {}
"""The user and password that this process has set in its environment."""


def open_store(uri: str) -> None:
    """Open a tracking store; create a sqlite file with all its tables if it does not exist, one process at a time.

    Args:
        uri: `sqlite:////folder/mlflow.db`, or a server's `http://host:port`. The user and
            password of `http://user:password@host` are moved to the environment, where MLflow reads them, so that no
            address in its output or errors contains them.

    Raises:
        UserError: the address is wrong, or the store is of another MLflow version, damaged, or cannot be written.
    """
    for source in ("mlflow", "alembic"):
        logging.getLogger(source).setLevel(logging.ERROR)  # their messages would hide the lines of the stage
    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # it logs a traceback and raises the same error
    uri = _move_login_to_environment(resolve_store(uri))
    if urllib.parse.urlsplit(uri).scheme not in {"http", "https"}:
        _limit_database_tries()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    database = sqlite_file(uri)
    if database is None:
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that create the tables at the same time leave a store that no process can open.
        with filelock.FileLock(f"{database}.lock"):
            client = MlflowClient()
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except Exception as error:
        raise UserError(
            f"The MLflow store {uri} cannot be opened: {first_line(error)}. If another MLflow version made it, run "
            f"`mlflow db upgrade {uri}`; otherwise repair the store or use another --tracking."
        ) from error


def _limit_database_tries() -> None:
    """Limit MLflow's attempts to connect to a database.

    By default each call waits 100 s for a database that does not answer, and the end of a training would wait too.
    """
    from mlflow.store.db import utils  # noqa: PLC0415 - imports SQLAlchemy, slow and not needed for a server

    utils.MAX_RETRY_COUNT = DATABASE_TRIES


def _move_login_to_environment(uri: str) -> str:
    """Move user and password of a server's address to the environment, and return the address without them.

    The login of an address that was opened before is removed from the environment.
    """
    for name in [name for name, value in _LOGIN.items() if os.environ.get(name) == value]:
        del os.environ[name]
    _LOGIN.clear()
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in {"http", "https"} or parts.password is None:
        return uri
    _LOGIN["MLFLOW_TRACKING_USERNAME"] = urllib.parse.unquote(parts.username or "")
    _LOGIN["MLFLOW_TRACKING_PASSWORD"] = urllib.parse.unquote(parts.password)
    os.environ.update(_LOGIN)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite store, None for any other URI."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def try_or_warn(what: str, action: Callable[[], ResultT], otherwise: ResultT) -> ResultT:
    """Return the result of `action`; if it fails, print the warning `what` with the error and return `otherwise`.

    Raises:
        UserError: `action` raised it, because the user must act.
    """
    try:
        return action()
    except UserError:
        raise
    except Exception as error:
        warn(f"{what} ({first_line(error)})")
        return otherwise


def warn(sentence: str) -> None:
    """Print one line on stderr, without passwords."""
    print(f"MLflow: {without_secrets(sentence)}.", file=sys.stderr)


def first_line(error: BaseException) -> str:
    """Return the first line of an error without its full stop and without passwords."""
    return (without_secrets(str(error)).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
