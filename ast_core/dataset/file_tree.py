"""What every layout is read with: clip and manifest types, collected problems, numbered lines, files inside a root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ast_core.errors import UserError

_DECODED = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
AUDIO_SUFFIXES = (*_DECODED, ".m4a", ".mp4", ".webm")
"""File types taken for audio, most wanted first; the last three cannot be decoded: they are listed to be rejected."""
SHOWN = 20
"""Problems shown in full before the rest is only counted."""
LONGEST_LINE = 1 << 20
"""Bytes of a list's line; AudioSet's have some hundred."""
LONGEST_PATH = 4096
"""Characters; what Linux takes for a path."""
_FILE, _LINK, _FOLDER = 0, 1, 2
_NO_NAMES = {"", ".", ".."}


@dataclass(frozen=True, slots=True)
class Clip:
    """One listed recording.

    Attributes:
        clip_id: unique in its manifest.
        path: absolute path of its file, "" when the clip is listed but has no file.
        labels: indices into `Manifest.labels`, ascending.
        split: name of its split, fit for a folder name.
    """

    clip_id: str
    path: str
    labels: tuple[int, ...]
    split: str


@dataclass(frozen=True)
class Manifest:
    """All clips of a data set, its label names in index order, whether every clip has one label, and its layout."""

    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    single_label: bool
    layout: str


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


def lines_of(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
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


class Tree:
    """Files below a root. Each folder is listed once, so that a million clips do not cost a million `stat` calls."""

    def __init__(self, root: Path) -> None:
        """Root is an existing folder."""
        self.root = os.path.realpath(root)
        self._real_prefix = self.root.rstrip("/") + "/"
        self._prefixes = (self._real_prefix, os.path.abspath(root).rstrip("/") + "/")
        self._folders: dict[str, dict[str, int]] = {}
        self._places: dict[str, tuple[str, dict[str, int]]] = {}

    def find(self, given: str) -> str:
        """Absolute path of a file given relative to the root (or absolute, below it); "" where there is none.

        Raises:
            ValueError: the path is malformed or leaves the root, by itself or by a link. The text says why.
        """
        name = given.rpartition("/")[2]
        before = given[: len(given) - len(name)]
        place = self._places.get(before)
        if place is None:
            place = self._places[before] = self._place(given, before)
        folder, entries = place
        if name in _NO_NAMES or "\0" in name or len(given) > LONGEST_PATH:
            raise ValueError(f"the path {shorten(given)} names no file")
        kind = entries.get(name)
        if kind is None:
            return ""
        path = folder + name
        if kind == _LINK:
            self._require_inside(path)
        return path

    def _place(self, given: str, before: str) -> tuple[str, dict[str, int]]:
        """Absolute folder, with a '/' at its end, and entries of what stands before a file's name."""
        if "\0" in before or len(before) > LONGEST_PATH:
            raise ValueError(f"the path {shorten(given)} names no file")
        if ".." in before.split("/"):
            raise ValueError(f"the path {shorten(given)} has '..' in it; give paths inside {self.root}")
        folder = os.path.normpath(os.path.join(self.root, before))
        if not f"{folder}/".startswith(self._prefixes):
            raise ValueError(f"the path {shorten(given)} is outside {self.root}")
        self.entries(self.root)
        return folder.rstrip("/") + "/", self.entries(folder)

    def entries(self, folder: str) -> dict[str, int]:
        """Names in a folder and their kinds; empty where there is no such folder. ValueError as for `find`."""
        known = self._folders.get(folder)
        if known is None:
            parent, _, name = folder.rpartition("/")
            beside = self._folders.get(
                parent
            )  # a folder a clip: what its parent shows saves most of the system's calls
            if beside is not None and name not in beside:
                return {}
            if folder != self.root and (beside is None or beside[name] == _LINK):
                self._require_inside(folder)
            try:
                with os.scandir(folder) as found:
                    known = {entry.name: _kind(entry) for entry in found}
            except (FileNotFoundError, NotADirectoryError):
                known = {}
            except OSError as error:
                raise ValueError(f"{shorten(folder)} cannot be listed: {error.strerror}") from error
            self._folders[folder] = known
        return known

    def folders(self, folder: str) -> list[str]:
        """Sorted names of the folders in a folder, without those that begin with `.` or `_`."""
        names = self.entries(folder).items()
        return sorted(n for n, kind in names if n[0] not in "._" and _is_folder(os.path.join(folder, n), kind))

    def audio(self, folder: str, problems: Problems) -> Iterator[str]:
        """Absolute paths of all audio files below a folder, in a fixed order; unreadable folders are noted."""
        waiting, seen = [folder], set()
        while waiting:
            current = waiting.pop()
            real = os.path.realpath(current)
            if real in seen:
                continue
            seen.add(real)
            try:
                found = self.entries(current)
            except ValueError as error:
                problems.add(current, None, str(error))
                continue
            for name in sorted(found, reverse=True):
                path = os.path.join(current, name)
                if name[0] != "." and _is_folder(path, found[name]):
                    waiting.append(path)
            names = sorted(name for name, kind in found.items() if is_audio(name, kind))
            yield from (os.path.join(current, name) for name in names)

    def _require_inside(self, path: str) -> None:
        real = os.path.realpath(path)
        if real != self.root and not real.startswith(self._real_prefix):
            raise ValueError(f"{shorten(path)} is a link out of {self.root}; put the file itself there")


def is_audio(name: str, kind: int = _FILE) -> bool:
    """Whether a file's name looks like audio: by its suffix, and not hidden."""
    return kind != _FOLDER and name[0] != "." and name.lower().endswith(AUDIO_SUFFIXES)


def _kind(entry: os.DirEntry[str]) -> int:
    return _LINK if entry.is_symlink() else _FOLDER if entry.is_dir(follow_symlinks=False) else _FILE


def _is_folder(path: str, kind: int) -> bool:
    return kind == _FOLDER or (kind == _LINK and os.path.isdir(path))
