"""Read the recordings of listed clips, in the order of the list, from wherever they are.

Local files are read by the decoder itself. Containers (Parquet files, tar archives) are opened once and read in order.
What comes from an object store is read ahead.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import fs

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.parquet_cells import read_cells
from ast_core.dataset.contents.read_ahead import read_ahead, read_objects
from ast_core.errors import ClipError, UserError
from ast_core.storage.file_systems import is_uri, locate_file

Content = str | bytes | ClipError | OSError
"""Path of a local file, or the bytes of a recording, or the fault of the clip or of the disk instead."""
WINDOW_BYTES = 16 << 20
"""Bytes of a tar archive that one request to a store reads at most, unless one recording is larger."""
_GAP_BYTES = 256 << 10
"""Bytes between two recordings of an archive that are read with them, because another request would cost more."""
_PARQUET_SUFFIX = ".parquet"
_FAULTS: dict[type[OSError], int] = {
    FileNotFoundError: errno.ENOENT,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    PermissionError: errno.EACCES,
}
"""Errors that are the fault of a clip, as they are for a local file; all others are the disk's or the store's."""


def read_contents(clips: Sequence[Clip], audio_column: str = "") -> Iterator[tuple[Clip, Content]]:
    """Yield each clip with its recording: the path of a local file, else its bytes.

    Clips that follow each other and are segments of one recording get the same bytes, which are read once. Memory
    holds a few recordings and a few pages of a Parquet file, never a complete row group.

    Args:
        clips: clips in the order of their list, which is the order in their containers.
        audio_column: column of the recordings in Parquet files; "" finds it.

    Yields:
        Instead of the recording, a `ClipError` of the stage `missing` (listed without a file) or `read` (the file was
        deleted, access is denied, or a Parquet cell is empty), or an `OSError`, which is the fault of the disk, the
        store or a damaged container. Every clip is yielded exactly once.

    Raises:
        UserError: a URI cannot be used.
    """
    for kind, run in itertools.groupby(clips, _find_kind):
        if kind == "container":
            for path, members in itertools.groupby(run, lambda clip: clip.path):
                yield from _read_container(path, list(members), audio_column)
        elif kind == "object":
            yield from _read_loose_objects(run)
        else:
            for clip in run:
                yield clip, clip.path or ClipError("missing", "listed, but there is no file")


def recording_of(clip: Clip) -> tuple[str, tuple[int, int] | None]:
    """Return what names a clip's recording: clips with the same path and member are segments of one recording."""
    return clip.path, clip.member


def describe_recording(clip: Clip, audio_column: str = "") -> str:
    """Return where a clip's recording is, for messages: its path, and its place in a container."""
    if clip.member is None:
        return clip.path
    first, second = clip.member
    if is_in_parquet(clip, audio_column):
        return f"{clip.path}, row group {first}, row {second}"
    return f"{clip.path}, bytes {first} to {first + second}"


def is_in_parquet(clip: Clip, audio_column: str = "") -> bool:
    """Return whether a clip's recording is in a Parquet file; other members are in tar archives."""
    return clip.member is not None and _is_parquet(clip.path, audio_column)


@functools.lru_cache(1024)
def _is_parquet(path: str, audio_column: str) -> bool:
    name = (path.partition("?")[0] if is_uri(path) else path).lower()
    return name.endswith(_PARQUET_SUFFIX) or (bool(audio_column) and not name.endswith(".tar"))


def _find_kind(clip: Clip) -> str:
    if clip.member is not None:
        return "container"
    return "object" if is_uri(clip.path) else "file"


def _read_container(path: str, clips: Sequence[Clip], audio_column: str) -> Iterator[tuple[Clip, Content]]:
    """Yield the members of one container; an error that stops the reading stands for all members that it concerns."""
    given = 0
    try:
        with _open(path) as file:
            size = file.size()
            contents = (
                read_cells(file, [_member(clip) for clip in clips], audio_column)
                if is_in_parquet(clips[0], audio_column)
                else _read_ranges(file, size, [_member(clip) for clip in clips])
            )
            for content in read_ahead(contents) if is_uri(path) else contents:
                yield clips[given], content
                given += 1
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  # packages of fsspec have exceptions of their own
        fault = _explain(error)
        yield from ((clip, fault) for clip in clips[given:])


def _read_ranges(file: pa.NativeFile, size: int, members: Sequence[tuple[int, int]]) -> Iterator[Content]:
    """Yield the bytes of members (first byte, number of bytes) of a tar archive; neighbours are one request."""
    for window in _split_windows(members):
        first = min(start for start, _ in window)
        content = _read_range(file, max(start + length for start, length in window) - first, first)
        last: tuple[tuple[int, int], Content] | None = None
        for start, length in window:
            if last is None or last[0] != (start, length):
                found: Content = content[start - first : start - first + length]
                if len(content) < start - first + length:
                    found = OSError(
                        f"the archive has {size} bytes, and the recording ends at byte {start + length}: the archive "
                        "was cut off or has changed since it was listed"
                    )
                last = (start, length), found
            yield last[1]


def _split_windows(members: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield runs of members that lie one after the other, each of at most `WINDOW_BYTES`."""
    window: list[tuple[int, int]] = []
    for start, length in members:
        if window:
            first, end = window[0][0], sum(window[-1])
            same = (start, length) == window[-1]
            near = end <= start <= end + _GAP_BYTES and start + length - first <= WINDOW_BYTES
            if not (same or near):
                yield window
                window = []
        window.append((start, length))
    if window:
        yield window


def _read_loose_objects(run: Iterator[Clip]) -> Iterator[tuple[Clip, Content]]:
    """Yield clips whose files are objects of a store; segments of one object follow each other and read it once."""
    objects = ((path, list(clips)) for path, clips in itertools.groupby(run, lambda clip: clip.path))
    named, opened = itertools.tee(objects)
    contents = read_objects(functools.partial(_open_object, path) for path, _ in opened)
    for (_, clips), content in zip(named, contents, strict=True):
        yield from ((clip, content) for clip in clips)


def _open_object(uri: str) -> tuple[int, Callable[[], Content]]:
    """Open an object; return its number of bytes and the function that reads it. Neither raises a store's errors."""
    try:
        file = _open(uri)
        size = file.size()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  # packages of fsspec have exceptions of their own
        fault = _explain(error)
        return 0, lambda: fault
    return size, functools.partial(_read_object, file, size)


def _read_object(file: pa.NativeFile, size: int) -> Content:
    try:
        with file:
            content = _read_range(file, size, 0)
    except Exception as error:  # noqa: BLE001  # packages of fsspec have exceptions of their own
        return _explain(error)
    if len(content) == size:
        return content
    return OSError(f"the store sent {len(content)} of {size} bytes")


def _read_range(file: Any, size: int, first: int) -> bytes:
    return bytes(file.read_at(size, first))  # `bytes` returns bytes as they are, without a copy


def _open(path: str) -> pa.NativeFile:
    filesystem, name = locate_file(path) if is_uri(path) else (fs.LocalFileSystem(), path)
    return filesystem.open_input_file(name)


def _member(clip: Clip) -> tuple[int, int]:
    if clip.member is None:
        raise ValueError(f"the clip {clip.clip_id!a} has no member")
    return clip.member


def _explain(error: Exception) -> ClipError | OSError:
    """Return the fault of a clip for an error that a local file could have, else the fault of the disk or store."""
    for kind, number in _FAULTS.items():
        if isinstance(error, kind):
            return ClipError("read", os.strerror(number))
    return error if isinstance(error, OSError) else OSError(str(error) or type(error).__name__)
