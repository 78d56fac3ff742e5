"""A lock that lets one launch at a time work on a folder; a second launch is refused and learns who holds it."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from ast_core.errors import UserError
from ast_core.storage.disk_space import write_error

LOCK, HOLDER = ".lock", ".holder"
PATIENCE_S = 1.0
"""Time for a holder that is about to end, or that has not written its name yet."""


@contextlib.contextmanager
def lock_folder(folder: Path, stage: str, option: str = "--run-dir") -> Iterator[None]:
    """Lock a folder for this process; the same process may lock it again inside.

    The operating system releases the lock when this process dies. Nodes that share the folder see the lock if their
    file system supports `flock`.

    Args:
        folder: created if it does not exist.
        stage: the stage that works on the folder; a second launch names it in its error.
        option: the user's option that the folder comes from, for the error.

    Raises:
        UserError: another process holds the lock (the error names stage, process, node and time), or the folder cannot
            be written.
    """
    lock = filelock.FileLock(folder / LOCK, is_singleton=True, thread_local=False)
    holder = folder / HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE_S)
    except filelock.Timeout:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise UserError(
            f"{folder} is in use by {who}. Wait until it ends or stop it, or choose another --run-dir.".replace(
                "--run-dir", option
            )
        ) from None
    except OSError as error:
        raise write_error(folder / LOCK, error, 0, 0) from error
    try:
        if lock.lock_counter == 1:
            _write_holder(holder, stage)
        yield
    finally:
        lock.release()


def _write_holder(holder: Path, stage: str) -> None:
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    try:
        holder.write_text(f"{stage}, process {os.getpid()} on {os.uname().nodename}, since {since}", encoding="utf-8")
    except OSError as error:
        raise write_error(holder, error, 0, 0) from error
