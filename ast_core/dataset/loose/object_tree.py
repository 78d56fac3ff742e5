"""Read the loose layouts from an object store: a local folder stands for the source while its lists are read.

The folder holds the downloaded lists. The files that they name are looked up in a listing of the store, and become URIs
at the end. So every layout is read by the same loader, wherever it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs

from ast_core.dataset.audio_suffixes import HEAD_BYTES, begins_like_audio
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.loose.audioset import AUDIOSET_SPLITS
from ast_core.dataset.loose.file_tree import FILE, FOLDER, FileTree
from ast_core.dataset.loose.user_table import MANIFEST_SUFFIXES
from ast_core.dataset.problems import Problems, UnlistedCounts, shorten
from ast_core.errors import UserError
from ast_core.storage.file_systems import is_uri, join_uri, locate_file, uses_percent

_LABELS = "class_labels_indices.csv"
LISTS = (
    _LABELS,
    *(f"{split}_segments.csv" for split in AUDIOSET_SPLITS),
    "meta/esc50.csv",
    "testing_list.txt",
    "validation_list.txt",
)
"""Names of the lists of all layouts, which are downloaded."""
_OPTION = "data.source"
_AT_ONCE = 16
"""Objects whose first bytes are read at the same time."""
_NO_FOLDERS = frozenset({"", ".", ".."})


class ObjectTree(FileTree):
    """The files of a folder in an object store, seen as files below a local folder. There are no links.

    The store is listed once, when the first folder is asked for. The first bytes of all objects whose names have no
    suffix are read together, when the first such object is asked for.

    Args:
        uri: URI of the folder.
        mirror: existing local folder that stands for it.
    """

    def __init__(self, uri: str, mirror: Path) -> None:
        super().__init__(mirror)
        self.uri = uri
        self._listed: dict[str, dict[str, int]] | None = None
        self._odd: list[str] = []
        self._without_suffix: frozenset[str] | None = None
        """Paths of the objects without a suffix that are audio."""

    def find(self, given: str) -> str:
        """Return the path below the local folder of a file, given by a relative path or by its URI; see `FileTree`."""
        if is_uri(given):
            top = self.uri.partition("?")[0].rstrip("/") + "/"
            if not given.startswith(top):
                raise ValueError(f"the path {shorten(given)} is outside {top}; give its folder with --data.root")
            given = given[len(top) :]
            if uses_percent(self.uri) and "%" in given:  # a list may have URIs as this project writes them, or plain
                return super().find(urllib.parse.unquote(given)) or super().find(given)
        return super().find(given)

    def uri_of(self, path: str) -> str:
        """Return the URI of a file that this tree found by its path below the local folder; "" for ""."""
        return join_uri(self.uri, path[len(self.root) + 1 :]) if path else ""

    def list_folder(self, folder: str) -> dict[str, int]:
        """Return a folder's names and their kinds; nothing if it does not exist."""
        if self._listed is None:
            self._listed, self._odd = _list_store(self.uri, self.root)
        return self._listed.get(folder, {})

    def count_files(self, folder: str) -> int:
        """Return the number of files below a folder."""
        below = f"{folder}/"
        found = {own: names for own, names in (self._listed or {}).items() if f"{own}/".startswith(below)}
        return sum(kind & 3 != FOLDER for names in found.values() for kind in names.values())

    def begins_like_audio(self, path: str) -> bool:
        """Return whether an object without any suffix begins as an audio file does."""
        if "." in path.rpartition("/")[2]:
            return False
        if self._without_suffix is None:
            self._without_suffix = frozenset(self._find_without_suffix())
        return path in self._without_suffix

    def count_unlisted(self, counts: UnlistedCounts, lists: Sequence[Path], unnamed: str, below: Sequence[str]) -> None:
        """Count every file below some folders that was not found with `find`; see `FileTree`."""
        super().count_unlisted(counts, lists, unnamed, below)
        for name in self._odd:
            counts.add("not read: a part of the name is empty, '.' or '..', which no folder can be named", name)

    def _find_without_suffix(self) -> Iterator[str]:
        """Yield the paths of the objects without any suffix that begin as an audio file does; each costs a request."""
        found = (f"{own}/{name}" for own, names in (self._listed or {}).items() for name, kind in names.items()
                 if kind & 3 != FOLDER and "." not in name)  # fmt: skip
        with ThreadPoolExecutor(_AT_ONCE, "first-bytes") as pool:
            try:
                yield from filter(None, pool.map(self._look, found))
            except Exception as error:  # packages of fsspec have exceptions of their own
                pool.shutdown(cancel_futures=True)
                raise _explain(self.uri, error) from error

    def _look(self, path: str) -> str:
        filesystem, name = locate_file(self.uri_of(path), _OPTION)
        with filesystem.open_input_file(name) as file:
            return path if begins_like_audio(file.read(HEAD_BYTES)) else ""


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A source in an object store, as the loaders of local sources see it."""

    place: str
    """URI of the source: a folder or a manifest."""
    source: Path
    """Local folder that stands for it, or the downloaded manifest."""
    tree: ObjectTree
    lists: tuple[str, str] = ("", "")
    """Local folder of the lists and their URI, if they are not in the folder of the recordings."""

    def restore(self, manifest: Manifest) -> Manifest:
        """Return a manifest with the URIs of its recordings instead of their paths below the local folder."""
        clips = tuple(_move(clip, self.tree.uri_of(clip.path)) for clip in manifest.clips)
        return dataclasses.replace(manifest, clips=clips, notes=tuple(self.name(note) for note in manifest.notes))

    def name(self, text: str) -> str:
        """Return a text for the user with the source's URI instead of the local folder."""
        for folder, uri in ((self.tree.root, self.tree.uri), self.lists):
            text = text.replace(folder, uri.partition("?")[0].rstrip("/")) if folder else text
        return text

    @contextlib.contextmanager
    def naming(self, problems: Problems) -> Iterator[Problems]:
        """Yield problems to add to; they and errors name the source's URI instead of the local folder."""
        try:
            yield _NamedProblems(self, problems)
        except UserError as error:
            raise UserError(self.name(str(error))) from error


class _NamedProblems(Problems):
    """Problems that are passed on with the names of a mirror's source."""

    def __init__(self, mirror: Mirror, problems: Problems) -> None:
        super().__init__()
        self._mirror = mirror
        self._problems = problems

    def add(self, file: Path | str, row: int | None, reason: str) -> None:
        self._problems.add(self._mirror.name(str(file)), row, self._mirror.name(reason))


@contextlib.contextmanager
def mirror_source(place: str, root: str = "") -> Iterator[Mirror]:
    """Download the lists of a source in an object store, and yield it as loaders of local sources need it.

    Args:
        place: URI of a folder or a manifest.
        root: URI of the folder of the recordings; "" for the folder of the lists.

    Raises:
        UserError: the source does not exist, or the store does not answer.
    """
    bare, mark, query = place.partition("?")
    bare = bare.rstrip("/")
    with tempfile.TemporaryDirectory(prefix="lists-") as made:
        mirror = Path(os.path.realpath(made))
        try:
            filesystem, name = locate_file(bare + mark + query, _OPTION)
            info = filesystem.get_file_info(name.rstrip("/"))
            if info.type == fs.FileType.NotFound:
                raise UserError(f"The data set {place} does not exist. Give an existing folder or manifest file.")
            if info.type == fs.FileType.File:
                source = mirror / PurePosixPath(name).name
                bare, name = bare.rpartition("/")[0], name.rpartition("/")[0]
                wanted = [source.name] if source.suffix.lower() in MANIFEST_SUFFIXES else []
                wanted.append(_LABELS)
            else:
                source, wanted = mirror, list(LISTS)
            _download(filesystem, name.rstrip("/"), wanted, mirror)
        except UserError:
            raise
        except Exception as error:  # packages of fsspec have exceptions of their own
            raise _explain(place, error) from error
        folder = bare + mark + query
        if not root:
            yield Mirror(place, source, ObjectTree(folder, mirror))
            return
        with tempfile.TemporaryDirectory(prefix="recordings-") as other:
            tree = ObjectTree(root, Path(os.path.realpath(other)))
            yield Mirror(place, source, tree, (str(mirror), folder))


@contextlib.contextmanager
def mirror_recordings(source: Path, uri: str) -> Iterator[Mirror]:
    """Yield a local source whose recordings are in an object store, as loaders of local sources need it.

    Args:
        source: local folder or manifest with the lists.
        uri: URI of the folder of the recordings.
    """
    with tempfile.TemporaryDirectory(prefix="lists-") as made:
        yield Mirror(uri, source, ObjectTree(uri, Path(os.path.realpath(made))))


def _download(filesystem: fs.FileSystem, folder: str, names: list[str], mirror: Path) -> None:
    """Download the lists that exist."""
    found: list[Any] = filesystem.get_file_info([f"{folder}/{name}" for name in names])
    for name, info in zip(names, found, strict=True):
        if info.type == fs.FileType.File:
            (mirror / name).parent.mkdir(exist_ok=True)
            fs.copy_files(info.path, str(mirror / name), filesystem, fs.LocalFileSystem())


def _list_store(uri: str, root: str) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Return the names and kinds in each folder of a store, by the folder's path below the local one.

    The second value has the names of objects that no local folder can have.
    """
    try:
        filesystem, base = locate_file(uri, _OPTION)
        base = base.rstrip("/")
        listed = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    except UserError:
        raise
    except Exception as error:  # packages of fsspec have exceptions of their own
        raise _explain(uri, error) from error
    folders: dict[str, dict[str, int]] = {root: {}}
    odd = []
    for info in listed:
        below = info.path[len(base) + 1 :]
        if not _NO_FOLDERS.isdisjoint(below.rstrip("/").split("/")):
            odd += [below] if info.type == fs.FileType.File else []
            continue
        folder, _, name = below.rpartition("/")
        if not name:  # an object whose key ends in `/` stands for a folder
            continue
        own = _add_folder(folders, f"{root}/{folder}" if folder else root)
        if info.type == fs.FileType.File:
            own[name] = FILE
        else:
            own.setdefault(name, FOLDER)
    return folders, odd


def _add_folder(folders: dict[str, dict[str, int]], folder: str) -> dict[str, int]:
    """Return the entries of a folder, which is added with the folders above it: stores may list only files."""
    known = folders.get(folder)
    if known is None:
        parent, _, name = folder.rpartition("/")
        _add_folder(folders, parent).setdefault(name, FOLDER)
        known = folders[folder] = {}
    return known


def _move(clip: Clip, path: str) -> Clip:
    return Clip(
        clip.clip_id, path, clip.labels, clip.split, clip.start_s, clip.end_s, clip.group, clip.member
    )  # `dataclasses.replace` would take five times as long


def _explain(place: str, error: Exception) -> UserError:
    return UserError(
        f"The data set {place} cannot be read: {str(error).rstrip('.')}. Check that the store can be reached and "
        "its keys are set (for example AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) on every node."
    )
