"""Walk over the files of folders and object stores as a stream; memory holds the names of one folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from ast_core.dataset.audio_suffixes import has_audio_suffix, starts_like_audio
from ast_core.dataset.problems import UnlistedCounts
from ast_core.errors import UserError
from ast_core.storage.file_systems import is_uri, join_uri, locate_file

_NAMES_AT_ONCE = 1 << 14
"""Names that are Python objects at the same time; the others of their folder are in Arrow's memory."""
_FILE, _FOLDER, _LINK = range(3)
_WILDCARD = re.compile(r"[*?\[]")


def walk_files(folder: str, counts: UnlistedCounts, depth: int | None = None) -> Iterator[str]:
    """Yield the paths of all files below a local folder, sorted by their parts, hidden files and links too.

    Args:
        folder: path of the folder.
        counts: where folders that cannot be read, and links to folders, which are not followed, are counted.
        depth: folders that are walked, one in the other; None for all.
    """
    try:
        names, kinds = _scan(folder)
    except OSError as error:
        counts.add("not readable", str(error.filename or folder), 1, "folder")
        return
    for start in range(0, len(names), _NAMES_AT_ONCE):
        some: list[Any] = names.slice(start, _NAMES_AT_ONCE).to_pylist()
        for number, name in enumerate(some, start):
            path = f"{folder.rstrip('/')}/{os.fsdecode(name)}" if folder else os.fsdecode(name)
            if kinds[number] == _FILE:
                yield path
            elif kinds[number] == _LINK:
                counts.add("links, which are not followed (name them to read them)", path, 1, "folder")
            elif depth is None or depth > 1:
                yield from walk_files(path, counts, None if depth is None else depth - 1)


def walk_objects(uri: str, option: str, depth: int | None = None) -> Iterator[str]:
    """Yield the URIs of all files below a folder of an object store, sorted folder by folder.

    Args:
        uri: URI of the folder.
        option: the user's option that the URI comes from, for errors.
        depth: folders that are walked, one in the other; None for all.

    Raises:
        UserError: the store does not answer.
    """
    filesystem, base = locate_file(uri, option)
    waiting = [(base.rstrip("/"), 1)]
    while waiting:
        current, level = waiting.pop()
        try:
            found = filesystem.get_file_info(fs.FileSelector(current))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{uri} cannot be listed: {error}. Check the URI, the store and its keys.") from error
        folders = []
        for info in sorted(found, key=lambda own: own.path):
            if info.type == fs.FileType.Directory:
                folders.append((info.path, level + 1))
            elif info.type == fs.FileType.File:
                yield join_uri(uri, info.path[len(base.rstrip("/")) + 1 :])
        if depth is None or level < depth:
            waiting += reversed(folders)


def is_recording(path: str) -> bool:
    """Return whether a file is audio by its suffix or, on this machine, by its first bytes."""
    if is_uri(path):
        return has_audio_suffix(path.partition("?")[0].rpartition("/")[2])
    return has_audio_suffix(path.rpartition("/")[2]) or starts_like_audio(path)


def has_wildcard(path: str) -> bool:
    """Return whether a path or URI holds `*`, `?` or `[`; a `?` in a URI begins its query."""
    return re.search(r"[*\[]" if is_uri(path) else _WILDCARD, path) is not None


def split_pattern(pattern: str) -> tuple[str, re.Pattern[str], int | None]:
    """Split a pattern into the folder before its first wildcard, the expression for paths in it, and their depth.

    `*` and `?` match inside a name, and `**` is any number of folders. A wildcard does not match a leading dot.
    """
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if has_wildcard(part))
    expression = ""
    for number, part in enumerate(parts[first:], first + 1):
        last = number == len(parts)
        if part == "**":
            expression += r"(?:[^/.][^/]*/)*" + (r"[^/.][^/]*" if last else "")
        else:
            hidden = "" if part.startswith(".") else r"(?!\.)"
            expression += hidden + _translate(part) + ("" if last else "/")
    depth = None if "**" in parts else len(parts) - first
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ""), re.compile(expression), depth


def _translate(part: str) -> str:
    """Return the expression for one name with wildcards."""
    pieces = re.split(r"(\*+|\?|\[!?\]?[^\]]*\])", part)
    table = {"*": "[^/]*", "?": "[^/]"}
    return "".join(
        table.get(piece[:1]) or (re.sub(r"^\[!", "[^", piece) if number % 2 else re.escape(piece))
        for number, piece in enumerate(pieces)
    )


def _scan(folder: str) -> tuple[pa.Array[Any], np.ndarray]:
    """Return the sorted names in a folder, as bytes, and their kinds."""
    chunks: list[pa.Array[Any]] = []
    names: list[bytes] = []
    kinds = bytearray()
    with os.scandir(folder or ".") as found:
        for entry in found:
            names.append(os.fsencode(entry.name))
            kinds.append(_kind(entry))
            if len(names) == _NAMES_AT_ONCE:
                chunks.append(pa.array(names, pa.binary()))
                names.clear()
    all_names = pa.chunked_array([*chunks, pa.array(names, pa.binary())]).combine_chunks()
    order = pc.sort_indices(all_names)
    return all_names.take(order), np.frombuffer(bytes(kinds), np.uint8)[order.to_numpy()]


def _kind(entry: os.DirEntry[str]) -> int:
    try:
        folder = entry.is_dir()
    except OSError:
        folder = False
    return _FILE if not folder else _LINK if entry.is_symlink() else _FOLDER
