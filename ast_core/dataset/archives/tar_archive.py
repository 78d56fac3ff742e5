"""List the members of tar archives by reading from header to header, in local files and in object stores.

Of a local archive only headers are read, and the members that the caller asks for. An archive in an object store is
read in one pass of large requests.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

from ast_core.dataset.archives.tar_headers import (
    BLOCK,
    END,
    Header,
    decode_name,
    explain_first_bytes,
    parse_header,
    parse_pax,
)
from ast_core.dataset.problems import make_printable, shorten
from ast_core.dataset.source_files import open_source_file
from ast_core.errors import UserError
from ast_core.storage.file_systems import is_uri

FILE, FOLDER, LINK, SPARSE, SPECIAL, NO_END = "file", "folder", "link", "sparse file", "special file", "no end"
"""Kinds of entries. `NO_END` stands after the last member of an archive without the blocks that end it."""
LOCAL_BYTES = 4096
"""Bytes that are read at a time from a local file: often two headers and the labels between them."""
REMOTE_BYTES = 4 << 20
"""Bytes that one request to a store reads at least."""
_MOST_EXTENDED = 1 << 20
"""Largest number of bytes of a long name or a PAX header."""
_REST = 1 << 20
"""Bytes after the end of an archive that are checked to be empty; writers fill up to their block size with zeros."""
_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"5": FOLDER, b"1": LINK, b"2": LINK, b"3": SPECIAL, b"4": SPECIAL,
    b"6": SPECIAL, b"S": SPARSE,
}  # fmt: skip
_EXTENDED = frozenset({b"L", b"K", b"x", b"X", b"g"})
"""Types of headers that belong to the next member, or to all that follow."""
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
Reader = Callable[[int, int], bytes]
"""Function that returns the bytes at (first byte, number of bytes), fewer at the end of the file."""


class TarMember(NamedTuple):
    """A regular file in an archive."""

    name: str
    """Name with its folders; bytes that are not UTF-8 are lone surrogates."""
    first_byte: int
    """Place of its first byte in the archive."""
    size: int
    """Number of its bytes."""


class TarEntry(NamedTuple):
    """An entry of an archive, of any kind."""

    name: str
    kind: str
    first_byte: int
    size: int


def list_tar_members(path: str) -> Iterator[TarMember]:
    """Yield the regular files of an archive, in order.

    Args:
        path: local path, or URI.

    Raises:
        UserError: the archive cannot be read, is damaged or cut off, or is compressed.
    """
    try:
        with OpenedTar(path) as archive:
            for entry in archive.entries():
                if entry.kind == FILE:
                    yield TarMember(entry.name, entry.first_byte, entry.size)
    except ValueError as error:
        raise UserError(f"{make_printable(path)}: {error}") from error


class OpenedTar:
    """An archive that is open for reading. Reads go forward.

    Raises:
        ValueError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._held, self._start = b"", 0
        # Packages of fsspec, which read some stores, have exceptions of their own.
        self._errors: tuple[type[Exception], ...] = (Exception,) if is_uri(path) else (OSError,)
        try:
            if is_uri(path):
                file = open_source_file(path)
                self.size = int(file.size())
                self._load, self._close, self._length = _read_object(file), file.close, REMOTE_BYTES
            else:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._close = lambda: os.close(descriptor)
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    self._close()
                    raise ValueError("the archive is not a regular file; give a file")
                self.size = status.st_size
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                self._load, self._length = lambda first, size: os.pread(descriptor, size, first), LOCAL_BYTES
        except UserError:
            raise
        except self._errors as error:
            raise ValueError(_explain_error(error)) from error

    def __enter__(self) -> Self:
        """Return the archive itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._close()

    def read(self, first: int, size: int) -> bytes:
        """Return the bytes at a place, fewer at the end of the file; ValueError if they cannot be read."""
        size = min(size, self.size - first)  # a store refuses to read past the end of an object
        if size <= 0:
            return b""
        at = first - self._start
        if at < 0 or at + size > len(self._held):
            try:
                self._held, self._start, at = self._load(first, max(size, self._length)), first, 0
            except self._errors as error:
                raise ValueError(_explain_error(error)) from error
        return self._held[at : at + size]

    def entries(self) -> Iterator[TarEntry]:
        """Yield the entries; ValueError says where the archive is damaged."""
        return read_entries(self.read, self.size)


def _read_object(file: Any) -> Reader:  # pyarrow's stub of `read_at` is wrong
    return lambda first, size: bytes(file.read_at(size, first))


def _explain_error(error: BaseException) -> str:
    """Return the sentence for an archive that cannot be read."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return f"the archive cannot be read: {text.rstrip('.')}"


def read_entries(read: Reader, size: int) -> Iterator[TarEntry]:
    """Yield the entries of an archive of `size` bytes, in order.

    Raises:
        ValueError: a header is damaged, the archive is cut off in a member, or data follow its end.
    """
    return _EntryReader(read, size).entries()


class _EntryReader:
    """Reader of the headers of one archive, which it takes in order."""

    def __init__(self, read: Reader, size: int) -> None:
        self._read = read
        self._size = size
        self._place = 0
        self._name = ""
        self._own: dict[str, str] = {}
        """Records of the PAX headers and long names before the next member."""
        self._common: dict[str, str] = {}
        """Records of the PAX headers for all members that follow."""

    def entries(self) -> Iterator[TarEntry]:
        """Yield the entries."""
        while True:
            block = self._read(self._place, BLOCK)
            if block == END:
                _check_rest(self._read, self._place + BLOCK, self._size)
                return
            if self._place == self._size and self._place:
                yield TarEntry("", NO_END, self._place, 0)
                return
            header = self._parse(block)
            if header.type in _EXTENDED:
                self._add_extended(header)
            else:
                yield self._read_entry(block, header)

    def _parse(self, block: bytes) -> Header:
        """Return the fields of a header; ValueError says where the archive is damaged."""
        try:
            if len(block) < BLOCK:
                raise ValueError(f"the archive is cut off, it has {self._size} bytes")
            header = parse_header(block)
            if header.type in _EXTENDED and header.size > _MOST_EXTENDED:
                raise ValueError(f"a name or PAX header has {header.size} bytes")
        except ValueError as error:
            if not self._place:
                raise ValueError(f"{explain_first_bytes(block)} ({error}); give archives that tar wrote") from error
            after = f", after the member {shorten(self._name)}" if self._name else ""
            raise ValueError(
                f"the header at byte {self._place}{after} is damaged: {error}; copy or write the archive again"
            ) from None
        return header

    def _add_extended(self, header: Header) -> None:
        """Read a long name or a PAX header. Of two with the same record, the first one counts, as for Python."""
        first = self._place + BLOCK
        content = self._read(first, header.size) if header.size else b""
        if len(content) < header.size:
            raise ValueError(
                f"the archive is cut off in the name or PAX header at byte {first}; copy or write it again"
            )
        if header.type == b"L":
            self._own.setdefault("path", decode_name(content.partition(b"\0")[0]))
        elif header.type != b"K":
            try:
                records = parse_pax(content)
            except ValueError as error:
                raise ValueError(
                    f"the PAX header at byte {first} is damaged: {error}; write the archive again"
                ) from None
            if header.type == b"g":
                self._common |= records
            else:
                self._own = records | self._own
        self._place = first + _pad(header.size)

    def _read_entry(self, block: bytes, header: Header) -> TarEntry:
        """Return the entry of a header, and go to the next one."""
        first, (name, size, kind) = self._place + BLOCK, header
        if kind == b"S":
            first = _skip_sparse_map(self._read, block, first)
        found = _find_kind(kind, name)
        if self._own or self._common:
            extended = {**self._common, **self._own}
            self._own = {}
            name = extended.get("GNU.sparse.name") or extended.get("path") or name
            size = _read_size(extended.get("size"), name) if extended.get("size") else size
            found = SPARSE if any(key.startswith("GNU.sparse.") for key in extended) else found
        self._name, end = name, first + (0 if kind in _WITHOUT_DATA else size)
        if end > self._size:
            raise ValueError(
                f"the archive has {self._size} bytes, but its member {shorten(name)} ends at byte {end}: the archive "
                "is cut off; copy or write it again"
            )
        self._place = first + _pad(end - first)
        return TarEntry(name, found, first, size)


def _read_size(given: str | None, name: str) -> int:
    """Return the size in a PAX header."""
    if given and given.isascii() and given.isdigit() and len(given) < 19:
        return int(given)
    raise ValueError(f"the PAX header of the member {shorten(name)} has the size {shorten(given or '')}")


def _find_kind(kind: bytes, name: str) -> str:
    if kind == b"\0" and name.endswith("/"):
        return FOLDER
    return _KINDS.get(kind, SPECIAL)


def _skip_sparse_map(read: Reader, block: bytes, first: int) -> int:
    """Return the place of a sparse file's data, after the blocks of its map."""
    more = block[482]
    while more:
        block = read(first, BLOCK)
        if len(block) < BLOCK:
            raise ValueError(f"the archive is cut off in the map of a sparse file at byte {first}")
        more, first = block[504], first + BLOCK
    return first


def _check_rest(read: Reader, place: int, size: int) -> None:
    """Raise ValueError if bytes that are not zero follow the end of an archive."""
    rest = read(place, min(size - place, _REST)) if size > place else b""
    if rest.strip(b"\0"):
        raise ValueError(
            f"more data follow the end of the archive at byte {place}, as if archives were joined with cat: unpack "
            "them and write one archive"
        )


def _pad(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
