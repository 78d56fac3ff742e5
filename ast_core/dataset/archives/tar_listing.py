"""List the members of many tar archives with the content of their labels, and keep the listings of remote ones.

A listing is a Parquet file per archive. It stands for the archive as long as its URI, size and time are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.dataset.archives.tar_archive import FILE, OpenedTar
from ast_core.dataset.archives.tar_headers import decode_name
from ast_core.dataset.problems import LONGEST_LINE
from ast_core.dataset.source_files import SourceFile
from ast_core.storage.atomic_files import atomic_write, download_file, list_stored, matches_store
from ast_core.storage.file_systems import is_uri
from ast_core.storage.object_store import store_of

LABEL_SUFFIXES = ("json", "cls", "txt")
"""Suffixes of the members that hold labels; the first one with a label counts."""
LONGEST_LABELS = LONGEST_LINE
"""Largest number of bytes of a member with labels."""
_FORMAT = 1
_ARCHIVES_AHEAD = 8
"""Archives of a store that are read at the same time."""
_KEY = b"ast_pipeline"
_COLUMNS: dict[str, pa.DataType] = {
    "name": pa.binary(), "kind": pa.string(), "first_byte": pa.int64(), "size": pa.int64(), "content": pa.binary(),
}  # fmt: skip
_SCHEMA = pa.schema(_COLUMNS)


class ListedMember(NamedTuple):
    """An entry of an archive, and the content of labels."""

    name: str
    kind: str
    """One of the kinds of `ast_core.dataset.archives.tar_archive`."""
    first_byte: int
    size: int
    content: bytes | None
    """Bytes of a member with labels of at most `LONGEST_LABELS` bytes; None for all others."""


Archive = tuple[SourceFile, Iterable[ListedMember]]
"""An archive and its members; iterating raises `ValueError` if the archive is damaged or cannot be read."""


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a member by the rule of WebDataset: the base name is cut at its first dot.

    The key has the folders of the name, without `./` before them, and the suffix is in lower case. Both are "" for a
    base name without a dot or with nothing before it.
    """
    base = name[name.rfind("/") + 1 :]
    stem, dot, suffix = base.partition(".")
    if not (stem and dot):
        return "", ""
    key = name[: len(name) - len(suffix) - 1]
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key, suffix.lower()


def list_archives(files: Sequence[SourceFile], folder: Path | None) -> Iterator[Archive]:
    """Yield each archive with its members, in the given order.

    Local archives are read while their members are taken. Of archives in a store, `_ARCHIVES_AHEAD` are read at the
    same time, and their listings are kept.

    Args:
        files: archives of a source.
        folder: folder in which the listings of archives in a store are kept; None keeps none.
    """
    if not any(is_uri(file.path) for file in files):
        yield from ((file, _read_members(file.path)) for file in files)
        return
    kept = _KeptListings(folder)
    waiting: deque[tuple[SourceFile, Future[list[ListedMember]]]] = deque()
    left = iter(files)
    with ThreadPoolExecutor(_ARCHIVES_AHEAD, "tar-listing") as pool:
        try:
            while True:
                for _, file in zip(range(_ARCHIVES_AHEAD + 1 - len(waiting)), left, strict=False):
                    waiting.append((file, pool.submit(kept.find, file)))
                if not waiting:
                    return
                yield _take(*waiting.popleft())
        finally:
            for _, one in waiting:
                one.cancel()


def _take(file: SourceFile, reading: Future[list[ListedMember]]) -> Archive:
    """Return the members of an archive of a store. An error of reading is raised when they are iterated."""
    try:
        return file, reading.result()
    except ValueError as error:
        return file, _fail(str(error))


def _fail(text: str) -> Iterator[ListedMember]:
    raise ValueError(text)
    yield


def _read_members(path: str) -> Iterator[ListedMember]:
    """Yield the members of an archive."""
    with OpenedTar(path) as archive:
        for name, kind, first_byte, size in archive.entries():
            content = None
            if kind == FILE and size <= LONGEST_LABELS and split_name(name)[1] in LABEL_SUFFIXES:
                content = archive.read(first_byte, size)
            yield ListedMember(name, kind, first_byte, size, content)


class _KeptListings:
    """The listings of archives in a store.

    Args:
        folder: where they are kept; None keeps none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.absolute() if folder else None
        # The run's own store has those that another node wrote.
        self._stored = list_stored(self._folder) if self._folder else {}

    def find(self, file: SourceFile) -> list[ListedMember]:
        """Return the members of an archive: from its listing, or from the archive, whose listing is then written.

        Raises:
            ValueError: the archive is damaged or cannot be read.
            UserError: the listing cannot be written.
        """
        if self._folder is None or file.size < 0:
            return list(_read_members(file.path))
        path = self._folder / f"{hashlib.sha256(file.path.encode()).hexdigest()[:32]}.parquet"
        identity = json.dumps({"format": _FORMAT, "uri": file.path, "size": file.size, "time_s": file.time_s})
        self._download(path)
        members = _read_listing(path, identity.encode())
        if members is None:
            members = list(_read_members(file.path))
            _write_listing(path, members, identity.encode())
        return members

    def _download(self, path: Path) -> None:
        stored, store = self._stored.get(path), store_of(path)
        if stored is not None and store is not None and not matches_store(path, stored):
            download_file(store, path, stored)


def _read_listing(path: Path, identity: bytes) -> list[ListedMember] | None:
    """Return the members in a listing; None if it does not exist, is of another archive, or is damaged."""
    try:
        table = pq.read_table(path, schema=None, page_checksum_verification=True)
        if (table.schema.metadata or {}).get(_KEY) != identity or not table.schema.equals(_SCHEMA):
            return None
        rows: Iterator[tuple[Any, ...]] = zip(*(column.to_pylist() for column in table.columns), strict=True)
        return [ListedMember(decode_name(name), *rest) for name, *rest in rows]
    except (OSError, ValueError, AttributeError, pa.ArrowException):  # a listing that cannot be read is made again
        return None


def _write_listing(path: Path, members: Sequence[ListedMember], identity: bytes) -> None:
    columns: list[list[Any]] = [
        [member.name.encode("utf-8", "surrogateescape") for member in members],
        *([member[place] for member in members] for place in range(1, len(_SCHEMA))),
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    table = pa.table(arrays, schema=_SCHEMA.with_metadata({_KEY: identity}))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
