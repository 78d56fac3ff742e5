"""What every layout is read with: clip and manifest types, collected problems, numbered lines, files inside a root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ast_core.dataset.problems import Problems, shorten

_DECODED = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
AUDIO_SUFFIXES = (*_DECODED, ".m4a", ".mp4", ".webm")
"""File types taken for audio, most wanted first; the last three cannot be decoded: they are listed to be rejected."""
LONGEST_PATH = 4096
"""Characters; what Linux takes for a path."""
_FILE, _LINK, _FOLDER = 0, 1, 2
_NO_NAMES = {"", ".", ".."}


class FileTree:
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
            temporary = self._folders.get(
                parent
            )  # a folder a clip: what its parent shows saves most of the system's calls
            if temporary is not None and name not in temporary:
                return {}
            if folder != self.root and (temporary is None or temporary[name] == _LINK):
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
