"""Collect the problems of a data set's lists, so that the user sees all of them, and count files that are no clips."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ast_core.dataset.clips import UnlistedFiles
from ast_core.errors import UserError

SHOWN = 20
"""Number of problems that the error shows; the rest is only counted."""
EXAMPLES = 3
"""Number of examples of unlisted files that are kept for each reason."""
LONGEST_LINE = 1 << 20
"""Largest number of bytes in a line of a list; AudioSet's lines have a few hundred."""


class Problems:
    """The problems found in a data set's lists so far.

    Args:
        limit: number of problems whose text is kept; the others are only counted.
    """

    def __init__(self, limit: int = SHOWN) -> None:
        self._limit = limit
        self._shown: list[str] = []
        self._count = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts of the problems that are kept."""
        return tuple(text.strip() for text in self._shown)

    def add(self, file: Path | str, row: int | None, reason: str) -> None:
        """Add one problem; `row` counts the file's lines from 1 and is None for the file itself."""
        self._count += 1
        if len(self._shown) < self._limit:
            self._shown.append(
                f"  {make_printable(str(file))}" + (f", row {row}" if row is not None else "") + f": {reason}"
            )

    def check(self, heading: str = "problem(s) in the data set; fix them and run again:") -> None:
        """Raise `UserError` with the first problems and their total number, if there are any."""
        if self._count:
            more = f"\n  ... and {self._count - len(self._shown)} more" if self._count > len(self._shown) else ""
            shown = "\n".join(self._shown) + more
            raise UserError(f"{self._count} {heading}\n{shown}")


class UnlistedCounts:
    """Counts and first examples by reason.

    Args:
        root: folder that the examples are relative to.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def add(self, reason: str, path: str, count: int = 1, noun: str = "file") -> None:
        """Count `path`, or `count` files below the folder `path`."""
        before, examples = self._found.get((reason, noun), (0, []))
        if len(examples) < EXAMPLES:
            inside = path.startswith(self._root.rstrip("/") + "/")
            examples.append(make_printable(os.path.relpath(path, self._root) if inside else path))
        self._found[reason, noun] = (before + count, examples)

    def counts(self) -> tuple[UnlistedFiles, ...]:
        """Return the counts in the order in which the reasons came up."""
        return tuple(
            UnlistedFiles(reason, count, tuple(shown), noun) for (reason, noun), (count, shown) in self._found.items()
        )


def shorten(text: str, width: int = 80) -> str:
    """Return a text as an ASCII literal of about `width` characters at most, which is safe to print."""
    return ascii(text if len(text) <= width else text[:width] + "...")


def make_printable(name: str) -> str:
    """Return a name, as an ASCII literal if a terminal cannot show it: JSON and Parquet refuse lone surrogates."""
    return name if name.isprintable() else ascii(name)


def canonical_name(text: str) -> str:
    """Return a name in the form that it shares with names that differ only in case, spaces or Unicode form."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def require_printable(what: str, text: str) -> None:
    """Raise ValueError if a name has line ends, NUL, or bytes that are not UTF-8: tables and pages show it later."""
    if not text.isprintable():
        raise ValueError(f"the {what} {shorten(text)} has characters that cannot be printed")


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line of a UTF-8 file, without line end and byte-order mark.

    A bad line is added to `problems` and yielded as "".

    Raises:
        UserError: the file cannot be opened, or is not a regular file: a pipe or device might never end.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be read: it is not a regular file. Give a file.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        for number, raw in enumerate(_bounded_lines(file), 1):
            text = ""
            try:
                if len(raw) > LONGEST_LINE:
                    problems.add(path, number, f"the line is longer than {LONGEST_LINE} bytes")
                else:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.add(path, number, f"the line is not UTF-8 (byte {error.start}); save the file as UTF-8")
            yield number, text.rstrip("\r\n")


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, and only the beginning of one that is too long: a file larger than the memory may be one line."""
    while raw := file.readline(LONGEST_LINE + 1):
        rest = raw
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield raw
