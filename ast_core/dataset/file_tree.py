"""Find files below a data set's root, and refuse paths that lead out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ast_core.dataset.problems import Problems, shorten

_DECODED = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
AUDIO_SUFFIXES = (*_DECODED, ".m4a", ".mp4", ".webm")
"""Suffixes of audio files, preferred ones first. The last three cannot be decoded: their clips become rejects."""
LONGEST_PATH = 4096
"""Largest number of characters in a path, as in Linux."""
_FILE, _LINK, _FOLDER = 0, 1, 2
_NO_NAMES = {"", ".", ".."}


class FileTree:
    """The files below a root. Each folder is listed once, so a million clips do not cost a million `stat`s."""

    def __init__(self, root: Path) -> None:
        """Start at `root`, an existing folder."""
        self.root = os.path.realpath(root)
        self._real_prefix = self.root.rstrip("/") + "/"
        self._prefixes = (self._real_prefix, os.path.abspath(root).rstrip("/") + "/")
        self._folders: dict[str, dict[str, int]] = {}
        self._places: dict[str, tuple[str, dict[str, int]]] = {}

    def find(self, given: str) -> str:
        """Return the absolute path of a file; "" if it does not exist.

        Args:
            given: path relative to the root, or an absolute path below it.

        Raises:
                ValueError: the path is malformed or leads out of the root, by itself or by a link. The text says why.
        """
        name = given.rpartition("/")[2]
        before = given[: len(given) - len(name)]
        place = self._places.get(before)
        if place is None:
            place = self._places[before] = self._list_folder(given, before)
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

    def _list_folder(self, given: str, before: str) -> tuple[str, dict[str, int]]:
        """Return the absolute folder `before`, with a '/' at its end, and its entries."""
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
        """Return a folder's names and their kinds; nothing if it does not exist. Raises ValueError as `find` does."""
        known = self._folders.get(folder)
        if known is None:
            parent, _, name = folder.rpartition("/")
            # Some data sets have a folder for each clip. The parent's entries then save most system calls.
            siblings = self._folders.get(parent)
            if siblings is not None and name not in siblings:
                return {}
            if folder != self.root and (siblings is None or siblings[name] == _LINK):
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
        """Return the sorted names of the folders in a folder, without those that begin with `.` or `_`."""
        names = self.entries(folder).items()
        return sorted(n for n, kind in names if n[0] not in "._" and _is_folder(os.path.join(folder, n), kind))

    def audio(self, folder: str, problems: Problems) -> Iterator[str]:
        """Yield the absolute paths of all audio files below a folder, in a fixed order.

        Folders that cannot be read are added to `problems`.
        """
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
        """Raise ValueError if a link leads out of the root."""
        real = os.path.realpath(path)
        if real != self.root and not real.startswith(self._real_prefix):
            raise ValueError(f"{shorten(path)} is a link out of {self.root}; put the file itself there")


def is_audio(name: str, kind: int = _FILE) -> bool:
    """Return whether a name is an audio file's: it has an audio suffix and is not hidden."""
    return kind != _FOLDER and name[0] != "." and name.lower().endswith(AUDIO_SUFFIXES)


def _kind(entry: os.DirEntry[str]) -> int:
    return _LINK if entry.is_symlink() else _FOLDER if entry.is_dir(follow_symlinks=False) else _FILE


def _is_folder(path: str, kind: int) -> bool:
    return kind == _FOLDER or (kind == _LINK and os.path.isdir(path))
