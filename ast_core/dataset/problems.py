"""Collect everything that is wrong with the lists of a data set, so that the user sees it all at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ast_core.errors import UserError

SHOWN = 20
"""Problems shown in full before the rest is only counted."""


LONGEST_LINE = 1 << 20
"""Bytes of a list's line; AudioSet's have some hundred."""


class Problems:
    """Collects what is wrong with a data set's lists, to say all of it at once."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._count = 0

    def add(self, file: Path | str, row: int | None, reason: str) -> None:
        """Note one problem; `row` counts a file's lines from 1, None for the file as a whole."""
        self._count += 1
        if len(self._shown) < SHOWN:
            name = str(file) if str(file).isprintable() else ascii(str(file))  # a terminal takes no half characters
            self._shown.append(f"  {name}" + (f", row {row}" if row is not None else "") + f": {reason}")

    def check(self) -> None:
        """Raise `UserError` with the first problems and their number, if there are any."""
        if self._count:
            more = f"\n  ... and {self._count - len(self._shown)} more" if self._count > len(self._shown) else ""
            shown = "\n".join(self._shown) + more
            raise UserError(f"{self._count} problem(s) in the data set; mend them and run again:\n{shown}")


def shorten(text: str, width: int = 80) -> str:
    """The text as an ASCII literal of at most about `width` characters, safe to print."""
    return ascii(text if len(text) <= width else text[:width] + "...")


def require_printable(what: str, text: str) -> None:
    """ValueError if a name has line ends, NUL, bytes that are no UTF-8 or the like: tables and pages show it later."""
    if not text.isprintable():
        raise ValueError(f"the {what} {shorten(text)} has characters that cannot be printed")


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Number and text (no line end, no byte-order mark) of a UTF-8 file's lines; a bad one is noted and comes as "".

    Raises:
        UserError: the file cannot be opened, or is a pipe or device, which might never end.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be read: it is no ordinary file.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        for number, raw in enumerate(_bounded_lines(file), 1):
            text = ""
            try:
                if len(raw) > LONGEST_LINE:
                    problems.add(path, number, f"longer than {LONGEST_LINE} bytes")
                else:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.add(path, number, f"not UTF-8 (byte {error.start}); save the file as UTF-8")
            yield number, text.rstrip("\r\n")


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long, its beginning: it may be all there is of a file larger than the memory."""
    while raw := file.readline(LONGEST_LINE + 1):
        rest = raw
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield raw
