"""One launch at a time works on a folder; a second one is told who holds it, and takes over once that one is gone."""

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
"""For a holder that is just leaving, or has not written down who it is."""


@contextlib.contextmanager
def lock_folder(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder for this process, whose stages may hold it once more inside.

    The operating system lets go of it when this process dies, however that is; where nodes share the folder, as far as
    their file system knows `flock`.

    Args:
        folder: made if it is not there.
        doing: what the holder does with it, for the sentence that a second launch ends with, such as `trained`.

    Raises:
        UserError: another process holds it; names that, its node, and since when. Or the folder cannot be written to.
    """
    lock = filelock.FileLock(folder / LOCK, is_singleton=True, thread_local=False)
    holder = folder / HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE_S)
    except filelock.Timeout:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise UserError(
            f"{folder} is being {doing} by {who}. Wait for it or end it, or choose another --run-dir."
        ) from None
    except OSError as error:
        raise write_error(folder / LOCK, error, 0, 0) from error
    try:
        if lock.lock_counter == 1:
            _note(holder)
        yield
    finally:
        lock.release()


def _note(holder: Path) -> None:
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    try:
        holder.write_text(f"process {os.getpid()} on {os.uname().nodename}, since {since}", encoding="utf-8")
    except OSError as error:
        raise write_error(holder, error, 0, 0) from error
