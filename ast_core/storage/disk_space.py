"""Room on a disk: asked for before anything is written, and told of where it ended all the same."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from ast_core.errors import NoRoomError, UserError

FULL_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
"""The system's numbers for a full disk and a used quota."""


def require_free_space(path: Path, size: int) -> None:
    """`NoRoomError`, unless the disk that `path` will lie on has `size` bytes free, as far as it says."""
    usage = shutil.disk_usage(_existing(path))
    if usage.free < size and usage.total:  # a file system that says 0 of 0 says nothing
        raise _no_room(path, f"it needs {size} bytes, {usage.free} are free")


def write_error(path: Path, error: OSError, written: int, size: int) -> UserError:
    """What a system's error means to whoever runs it.

    Args:
        path: that was being written.
        error: the system's.
        written: bytes that were, before they were removed again.
        size: bytes that it was to have, 0 if that was not known.
    """
    if error.errno not in FULL_DISK_ERRNOS:
        return UserError(f"{path} could not be written: {error.strerror or error}. Mend that and run again.")
    reason = os.strerror(error.errno or 0)
    needs = f"{size} bytes" if size > written else f"more than {written} bytes"
    free = shutil.disk_usage(_existing(path)).free
    return _no_room(path, f"{reason}: it needs {needs}, {free} are free")


def _no_room(path: Path, reason: str) -> NoRoomError:
    return NoRoomError(f"{path} could not be written: {reason}. Free space and run again: what was committed stays.")


def _existing(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
