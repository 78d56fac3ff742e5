"""Sizes and times of source files, by which a changed source is noticed, and their paths relative to the source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyarrow import fs

from ast_core.errors import UserError
from ast_core.storage.file_systems import is_uri, locate_file

REQUESTS = 16
"""Number of requests to a store at the same time."""


def read_states(paths: Iterable[str]) -> dict[str, list[Any]]:
    """Return what says whether each file is still the same: its size and time, or the number of the error.

    Each file is looked at once, whatever the number of clips in it. Of an object in a store it is the size and the time
    of the upload in whole seconds, in which listings and single queries agree. Of fsspec's file systems it is a hash of
    all that they report, such as the hub's hash of a file.

    Raises:
        UserError: a URI cannot be used, or the store does not answer.
    """
    unique = dict.fromkeys(paths)
    objects = [path for path in unique if is_uri(path)]
    states = {path: _read_local(path) for path in unique if not is_uri(path)}
    if objects:
        with ThreadPoolExecutor(min(REQUESTS, len(objects)), "source-state") as pool:
            states |= zip(objects, pool.map(_read_object, objects), strict=True)
    return states


def relative_path(path: str, root: str) -> str:
    """Return a file's path relative to its source, so that a data set that is moved is still the same.

    Args:
        path: absolute path or URI of a file.
        root: folder or URI that `root_of` returned for the source.
    """
    if not is_uri(path):
        return path if is_uri(root) else os.path.relpath(path, root)
    place = path.partition("?")[0]
    return place.removeprefix(f"{root}/") if place != root else "."


def _read_local(path: str) -> list[Any]:
    try:
        status = Path(path).stat()
        return [status.st_size, status.st_mtime_ns, os.access(path, os.R_OK)]
    except OSError as error:
        return [error.errno or 0]


def _read_object(uri: str) -> list[Any]:
    try:
        filesystem, name = locate_file(uri)
        info = filesystem.get_file_info(name)
        if info.type == fs.FileType.NotFound:
            return [2]
        state = [info.size, (info.mtime_ns or 0) // 10**9]
        handler: Any = getattr(filesystem, "handler", None)
        if not isinstance(handler, fs.FSSpecHandler):
            return state
        system: Any = handler.fs
        return [*state, system.ukey(name)]
    except UserError:
        raise
    except Exception as error:  # packages of fsspec have exceptions of their own
        raise UserError(
            f"{uri} could not be looked up: {str(error).rstrip('.')}. Check that the store can be reached and its keys "
            "on every node, then run the same command again; finished shards stay."
        ) from error
