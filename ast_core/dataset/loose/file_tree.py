"""Find files below a data set's root, and refuse paths that lead out of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ast_core.dataset.audio_suffixes import has_audio_suffix, starts_like_audio
from ast_core.dataset.problems import Problems, UnlistedCounts, shorten

LONGEST_PATH = 4096
"""Largest number of characters in a path, as in Linux."""
FILE, _LINK, FOLDER, _SPECIAL, _USED = 0, 1, 2, 3, 4
"""Kinds of entries (`_SPECIAL` is a pipe, socket or device), and the bit that `find` sets for a file that it found."""
_NO_NAMES = {"", ".", ".."}
_ROOT_HINT = "give its folder with --data.root"
_LINK_HINT = "put the file itself there, or allow it with --data.follow-links or --data.root FOLDER"
_Place = tuple[str, dict[str, int]]
"""An absolute folder with a '/' at its end, and its entries."""


class FileTree:
    """The files below a root. Each folder is listed once, so a million clips do not cost a million `stat`s.

    Args:
        root: existing folder.
        others: further folders in which files of a list, or the targets of links, may lie.
        follow_links: whether links may lead anywhere.
    """

    def __init__(self, root: Path, others: Sequence[Path] = (), follow_links: bool = False) -> None:
        self.root = os.path.realpath(root)
        self.roots = list(dict.fromkeys([self.root, *map(os.path.realpath, others)]))
        self.skipped: set[str] = set()
        """Folders that `folders` left out for their names."""
        self._aliases: set[str] = set()
        """Links to folders that are read by their own names."""
        self._follow_links = follow_links
        self._real_prefixes = tuple(folder.rstrip("/") + "/" for folder in self.roots)
        self._prefixes: list[tuple[str, str]] = []
        """A prefix of paths below a root as the user gives them, and the prefix of the real paths."""
        for folder in (root, *others):
            real = os.path.realpath(folder).rstrip("/") + "/"
            self._prefixes += [(real, real), (os.path.abspath(folder).rstrip("/") + "/", real)]
        self._folders: dict[str, dict[str, int]] = {}
        self._places: dict[str, list[_Place]] = {}
        self._real_folders: dict[str, str] = {}
        """Real paths of the folders that were reached by a link."""

    def find(self, given: str) -> str:
        """Return the absolute path of a file, and note that it is used; "" if it does not exist.

        Args:
            given: path relative to a root (the first one that has the file counts), or an absolute path below one.

        Raises:
            ValueError: the path is malformed or leads out of the roots, by itself or by a link. The text says why.
        """
        name = given.rpartition("/")[2]
        before = given[: len(given) - len(name)]
        places = self._places.get(before)
        if places is None:
            places = self._places[before] = self._list_places(given, before)
        if name in _NO_NAMES or "\0" in name or len(given) > LONGEST_PATH:
            raise ValueError(f"the path {shorten(given)} names no file")
        for folder, entries in places:
            kind = entries.get(name)
            if kind is not None:
                path = folder + name
                if kind == _LINK:
                    self._require_inside(path)
                    self._use_target(path)
                entries[name] = kind | _USED
                return path
        return ""

    def mark(self, path: str) -> None:
        """Note that a file that `audio` yielded was counted."""
        folder, _, name = path.rpartition("/")
        self.entries(folder)[name] |= _USED

    def _list_places(self, given: str, before: str) -> list[_Place]:
        """Return the folders that `before` may be."""
        if "\0" in before or len(before) > LONGEST_PATH:
            raise ValueError(f"the path {shorten(given)} names no file")
        climbs = ".." in before.split("/")
        places = []
        for root in self.roots[:1] if before.startswith("/") else self.roots:
            folder = os.path.normpath(os.path.join(root, before)).rstrip("/") + "/"
            # `a/../b` is not `b` if `a` is a link. So '..' leads only to further roots, which the user named.
            found = (
                real + folder[len(own) :]
                for own, real in self._prefixes[2 if climbs else 0 :]
                if folder.startswith(own)
            )
            real = next(found, None)
            if real is not None:
                self.entries(self.root)
                places.append((real, self.entries(real.rstrip("/") or "/")))
        if places:
            return places
        if climbs:
            raise ValueError(
                f"the path {shorten(given)} has '..' in it; give paths inside {self.root}, or {_ROOT_HINT}"
            )
        raise ValueError(f"the path {shorten(given)} is outside {self.root}; put it there, or {_ROOT_HINT}")

    def entries(self, folder: str) -> dict[str, int]:
        """Return a folder's names and their kinds; nothing if it does not exist. Raises ValueError as `find` does."""
        known = self._folders.get(folder)
        if known is None:
            parent, _, name = folder.rpartition("/")
            # Some data sets have a folder for each clip. The parent's entries then save most system calls.
            siblings = self._folders.get(parent)
            if siblings is not None and name not in siblings:
                return {}
            if folder not in self.roots and (siblings is None or siblings[name] & 3 == _LINK):
                self._require_inside(folder)
                real = os.path.realpath(folder)
            else:
                real = folder if parent not in self._real_folders else f"{self._real_folders[parent]}/{name}"
            if real != folder:
                self._real_folders[folder] = real
            known = self._folders.get(real)
            if known is None:
                known = self._folders[real] = self.list_folder(real)
            self._folders[folder] = known
        return known

    def list_folder(self, folder: str) -> dict[str, int]:
        """Return a folder's names and their kinds; nothing if it does not exist. `entries` remembers them."""
        try:
            with os.scandir(folder) as found:
                return {entry.name: _kind(entry) for entry in found}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise ValueError(f"{shorten(folder)} cannot be listed: {error.strerror}") from error

    def count_files(self, folder: str) -> int:
        """Return the number of files below a folder."""
        return sum(len(names) for _, _, names in os.walk(folder))

    def begins_like_audio(self, path: str) -> bool:
        """Return whether a file without an audio suffix begins as an audio file does."""
        return starts_like_audio(path)

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders in a folder, without those that begin with `.` or `_`."""
        names = [n for n, kind in self.entries(folder).items() if _is_folder(os.path.join(folder, n), kind)]
        self.skipped.update(os.path.join(folder, name) for name in names if name[0] in "._")
        return sorted(name for name in names if name[0] not in "._")

    def audio(self, folder: str, problems: Problems, seen: set[str] | None = None) -> Iterator[str]:
        """Yield the absolute paths of all audio files below a folder, in a fixed order.

        A file is audio if it has an audio suffix or begins as an audio file does, and is not hidden. Folders that
        cannot be read are added to `problems`.

        Args:
            folder: absolute path.
            problems: where folders that cannot be read are added.
            seen: real paths of folders to leave out; those that are walked are added.
        """
        waiting, seen = [folder], set() if seen is None else seen
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
            names = (name for name, kind in found.items() if kind & 3 != FILE and name[0] != ".")
            inner = sorted((f"{current}/{name}" for name in names), reverse=True)
            waiting += [path for path in inner if _is_folder(path, found[path[len(current) + 1 :]])]
            yield from self.audio_in(current)

    def is_alias(self, path: str, root: str, classes: Collection[str]) -> bool:
        """Return whether links lead from one class folder to a file of another, and note the link if so.

        Args:
            path: file that `audio` yielded.
            root: folder of the class folders.
            classes: names of the other class folders.
        """
        folder = path.rpartition("/")[0]
        real = self._real_folders.get(folder, folder)
        if real == folder or not f"{real}/".startswith(f"{root}/"):
            return False
        top = real[len(root) + 1 :].partition("/")[0]
        if top and (top not in classes or self.entries(root)[top] & 3 == _LINK):
            return False
        while not os.path.islink(folder):
            folder = folder.rpartition("/")[0]
        self._aliases.add(folder)
        return True

    def audio_in(self, folder: str) -> Iterator[str]:
        """Yield the absolute paths of the audio files in a folder, sorted by name."""
        for name, kind in sorted(self.entries(folder).items()):
            if is_audio(name, kind) or (name[0] != "." and self._starts_like_audio(f"{folder}/{name}", kind)):
                yield f"{folder}/{name}"

    def count_unlisted(self, counts: UnlistedCounts, lists: Sequence[Path], unnamed: str, below: Sequence[str]) -> None:
        """Count every file below some folders that was not found with `find`.

        Args:
            counts: where they are counted.
            lists: files that are the lists themselves, which do not count.
            unnamed: reason for audio files.
            below: folders.
        """
        waiting, seen = list(below), set[str]()
        for link in sorted(self._aliases):
            counts.add("links to folders that are read by their own names", link, 1, "folder")
        own = {os.path.realpath(path) for path in lists}
        while waiting:
            current = waiting.pop()
            real = os.path.realpath(current)
            if real not in seen:
                seen.add(real)
                waiting += self.count_unlisted_in(current, counts, own, unnamed)

    def count_unlisted_in(self, folder: str, counts: UnlistedCounts, own: set[str], unnamed: str) -> list[str]:
        """Count the files in one folder as `count_unlisted` does, and return the folders in it that are not skipped."""
        folders = []
        try:
            found = sorted(self.entries(folder).items())
        except ValueError:
            counts.add("not read: links elsewhere or without access (see --data.follow-links)", folder, 1, "folder")
            return []
        for name, kind in found:
            path = f"{folder}/{name}"
            if kind & 3 != FILE and _is_folder(path, kind):
                if name[0] != "." and path not in self.skipped:
                    folders.append(path)
                elif files := 1 if kind & 3 == _LINK else self.count_files(path):
                    counts.add("in skipped folders, whose names begin with '.' or '_'", path + "/", files)
            elif kind & _USED or path in own:
                continue
            elif name[0] == ".":
                counts.add("hidden", path)
            elif is_audio(name, kind) or self._starts_like_audio(path, kind):
                counts.add(unnamed, path)
            else:
                counts.add("not audio", path)
        return sorted(folders, reverse=True)

    def used_folders(self) -> list[str]:
        """Return the folders in which `find` found a file."""
        return [folder for folder, found in self._folders.items() if any(kind & _USED for kind in found.values())]

    def _use_target(self, link: str) -> None:
        """Note that the file that a link leads to is used."""
        folder, _, name = os.path.realpath(link).rpartition("/")
        found = (
            self._folders.get(folder)
            if folder in self._folders or not self._is_inside(folder)
            else self.entries(folder)
        )
        if found is not None and name in found:
            found[name] |= _USED

    def _starts_like_audio(self, path: str, kind: int) -> bool:
        """Return whether a file without an audio suffix is audio. Links are opened only where `find` follows them."""
        if kind & 3 == _LINK:
            try:
                self._require_inside(path)
            except ValueError:
                return False
        return kind & 3 in {FILE, _LINK} and self.begins_like_audio(path)

    def _require_inside(self, path: str) -> None:
        """Raise ValueError if a link leads out of the roots and links may not."""
        if not (self._follow_links or self._is_inside(os.path.realpath(path))):
            raise ValueError(f"{shorten(path)} is a link out of {self.root}; {_LINK_HINT}")

    def _is_inside(self, real: str) -> bool:
        """Return whether a real path is a root or below one."""
        return real in self.roots or real.startswith(self._real_prefixes)


def is_audio(name: str, kind: int = FILE) -> bool:
    """Return whether a name is an audio file's: it has an audio suffix and is not hidden."""
    return kind & 3 != FOLDER and name[0] != "." and has_audio_suffix(name)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return _LINK
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    return FILE if entry.is_file(follow_symlinks=False) else _SPECIAL


def _is_folder(path: str, kind: int) -> bool:
    return kind & 3 == FOLDER or (kind & 3 == _LINK and os.path.isdir(path))
