"""Check free space before writing, and describe errors of full disks."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from ast_core.errors import NoRoomError, UserError

FULL_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
"""The system's error numbers for a full disk and a used-up quota."""


def require_free_space(path: Path, size: int) -> None:
    """Raise NoRoomError unless the disk of `path` reports at least `size` bytes free."""
    usage = shutil.disk_usage(_find_existing(path))
    if usage.free < size and usage.total:  # some file systems report 0 of 0 bytes
        raise _no_room(path, f"it needs {size} bytes, {usage.free} are free")


def write_error(path: Path, error: OSError, written: int, size: int) -> UserError:
    """Return the error that tells the user why a file could not be written.

    Args:
        path: file that could not be written.
        error: the system's error.
        written: bytes that were written before the error.
        size: bytes that the file needs; 0 if unknown.
    """
    if error.errno not in FULL_DISK_ERRNOS:
        return UserError(f"{path} could not be written: {error.strerror or error}. Fix that and run again.")
    reason = os.strerror(error.errno or 0)
    needs = f"{size} bytes" if size > written else f"more than {written} bytes"
    free = shutil.disk_usage(_find_existing(path)).free
    return _no_room(path, f"{reason}: it needs {needs}, {free} are free")


def _no_room(path: Path, reason: str) -> NoRoomError:
    return NoRoomError(
        f"{path} could not be written: {reason}. Free space and run again; files that were committed stay."
    )


def _find_existing(path: Path) -> Path:
    """Return the nearest folder above a path that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
