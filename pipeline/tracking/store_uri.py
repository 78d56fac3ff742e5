"""Check the address of a tracking store before a stage does anything else. This module does not import MLflow."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

from ast_core.errors import UserError

SQLITE = "sqlite:///"
SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
"""Databases that MLflow takes besides sqlite; a driver may follow, as in `mysql+pymysql`."""
_SERVER = re.compile(r"(?:(https?):?/*)?(?:[^@/:]*@)?([\w.-]+:\d{1,5}|localhost)(?:[/?#]|$)")
_LOGIN = re.compile(r"([a-z][\w+.-]*:/+|https?:|(?![a-z][\w+.-]*:/))[^@:]*:.*@", re.IGNORECASE | re.DOTALL)
_FILE_SCHEME = re.compile(r"file:(?://)?|sqlite(?:\+\w+)?:/{0,3}")
_PATH = re.compile(r"[\w./ ~+@=-]+")


def choose_store(uri: str = "", source: str = "--tracking") -> str:
    """Return the address of the store to use: the one given, else the environment variable's, else sqlite in `work`.

    Args:
        uri: address that the user gave, or "".
        source: where it was given, for errors.

    Raises:
        UserError: it is no address of a store with a registry.
    """
    if uri:
        return resolve_store(uri, source)
    if uri := os.environ.get("MLFLOW_TRACKING_URI", ""):
        return resolve_store(uri, "MLFLOW_TRACKING_URI")
    return f"{SQLITE}{Path('work/mlflow.db').absolute()}"


def resolve_store(uri: str, source: str = "--tracking") -> str:
    """Return the address of a store with the absolute path of a sqlite file.

    The file must exist or be new: MLflow would take a folder or a bare name for its old store of files, which has no
    registry, and a training would end without a record of it.

    Args:
        uri: `sqlite:///FILE`, a server's `http://HOST:PORT`, or the address of a database.
        source: flag or environment variable that has this value, for errors.

    Raises:
        UserError: MLflow would not take this address, or would not take it for a store with a registry; the text has
            the right form.
    """
    if (problem := _find_problem(uri)) is not None:
        raise UserError(f"{source} is {_hide_login(uri)!r}, but {problem}; use {_suggest(uri)}.")
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return uri


def _find_problem(uri: str) -> str | None:
    """Return what is wrong with an address, or None."""
    try:
        parts = urllib.parse.urlsplit(uri)
        port = parts.port  # ValueError if it is no number
    except ValueError as error:
        special = "write special characters of a password as %XX, for example / as %2F"
        reason = error if _hide_login(uri) == uri else special  # the error may repeat a part of the password
        return f"it is not an address ({reason})"
    scheme = parts.scheme.partition("+")[0]
    if scheme in SERVERS:
        if not parts.hostname or port == 0 or " " in parts.netloc:
            return "it does not name a server"
        return "it is the address of a page in the browser" if parts.fragment or parts.query else None
    if scheme in DATABASES:
        # A query may name the database (`?odbc_connect=...`), and so may the host, for ODBC the name of a data source.
        named = bool(parts.path.strip("/") or parts.query) or parts.scheme.endswith("+pyodbc")
        return None if uri.startswith(f"{parts.scheme}://") and named else "it does not name a database"
    if scheme == "sqlite":
        return _find_problem_of_file(uri)
    return "runs and models are kept only in a database or on an MLflow server"


def _find_problem_of_file(uri: str) -> str | None:
    """Return what is wrong with the address of a sqlite file, or None."""
    name = uri.removeprefix(SQLITE)
    if not uri.startswith(SQLITE) or not name or name.startswith(":"):
        return "it does not name a file"
    if name.startswith("~"):
        return "sqlite does not know the home `~`"
    if _is_folder(name) or name.endswith("/"):
        return "this is a folder, not a file"
    return None


def _hide_login(uri: str) -> str:
    """Return an address with `***` for `user:password`, also where it is not a URI: `user:password@host`."""
    return _LOGIN.sub(r"\1***@", uri, count=1) if _LOGIN.match(uri.lstrip()) else uri


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path's raises where the user may not look


def _suggest(uri: str) -> str:
    """Return the address that the user probably means."""
    text = _LOGIN.sub(r"\1", uri.strip(), count=1)
    if server := _SERVER.match(text):
        return f"{server[1] or 'http'}://{server[2]}"
    if text.startswith("postgres"):
        return "postgresql://USER@HOST/DATABASE"
    path = _FILE_SCHEME.sub("", text)
    if text.startswith(("http", "databricks")) or not _PATH.fullmatch(path):
        path = "work/mlflow.db"
    is_file = path.endswith((".db", ".sqlite", ".sqlite3")) and not _is_folder(path)
    file = Path(os.path.expanduser(path)) / ("" if is_file else "mlflow.db")  # noqa: PTH111 - Path's raises where the user has no home
    return f"{SQLITE}{file} or http://localhost:5000"
