"""One way to commit bytes: write beside, sync, rename, sync the folder. A folder's marker file comes last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ast_core.errors import DamagedError, UserError


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on leaving, its bytes are synced and renamed to `path`. On an error nothing is left.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        _sync(beside)
        beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}. Free space or mend it, run again."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Commit a JSON value, indented and with sorted keys."""
    with committed(path) as beside:
        beside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """A JSON file's value; `what` names it in the error.

    Raises:
        UserError: the file is missing.
        DamagedError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} is missing: {path}.") from None
    except ValueError as error:
        raise DamagedError(f"{what} is damaged: {path} is not JSON ({error}).") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
