"""Inputs of `predict` and `embed` that hold many recordings: Parquet files with audio inside, and tar archives."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ast_core.dataset.archives.tar_archive import list_tar_members
from ast_core.dataset.clips import Clip
from ast_core.dataset.parquet.parquet_audio import find_audio_column, list_parquet_members
from ast_core.errors import require
from ast_core.storage.file_systems import is_uri, locate_file
from ast_core.storage.name_set import NameSet

PARQUET, TAR = ".parquet", ".tar"


def is_container(path: str) -> bool:
    """Return whether a path or URI has the suffix of a container."""
    return _suffix_is(path, PARQUET) or _suffix_is(path, TAR)


def holds_recordings(path: str) -> bool:
    """Return whether a container that was found in a folder holds recordings, and is not, for example, a table."""
    if _suffix_is(path, TAR):
        return True
    filesystem, name = locate_file(path, "INPUTS") if is_uri(path) else (fs.LocalFileSystem(), path)
    try:
        with filesystem.open_input_file(name) as file:
            return bool(find_audio_column(pq.read_schema(file)))
    except (OSError, pa.ArrowException):
        return False


def list_members(path: str) -> Iterator[Clip]:
    """Yield the recordings in a container: PATH/NAME, and NAME#2 for the second one of a name.

    Raises:
        UserError: the file cannot be read, or holds no recordings.
    """
    require(
        holds_recordings(path),
        f"{path} holds no recordings: it has no column of bytes, or cannot be read. If it is a list of files or a "
        "table of predictions, give the folder of the recordings instead.",
    )
    place = path if is_uri(path) else os.path.abspath(path)
    names = NameSet()
    tar = _suffix_is(path, TAR)
    members = ((own.name, (own.first_byte, own.size)) for own in list_tar_members(place)) if tar else None
    for name, member in members or list_parquet_members(place):
        unique, number = name, 1
        while not names.add(unique):
            number += 1
            unique = f"{name}#{number}"
        yield Clip(f"{path}/{unique}", place, (), "", member=member)


def _suffix_is(path: str, suffix: str) -> bool:
    return (path.partition("?")[0] if is_uri(path) else path).lower().endswith(suffix)
