"""Find the files of a source that hold many recordings each: below a folder, by a glob, or in an object store."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from ast_core.dataset.clips import UnlistedFiles
from ast_core.dataset.loose.file_tree import FileTree
from ast_core.dataset.problems import Problems, UnlistedCounts
from ast_core.dataset.source_options import SourceOptions
from ast_core.errors import UserError
from ast_core.storage.file_systems import is_uri, join_uri, locate_file
from ast_core.storage.places import fixed_folder, is_pattern

_OPTION = "data.source"
_AUDIO = "audio, but next to files that hold the recordings"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    path: str
    """Absolute path, or URI."""
    name: str
    """Path relative to the source's folder, with `/` between the folders."""
    size: int = -1
    """Number of bytes of an object in a store; -1 for a local file."""
    time_s: int = 0
    """Time of the object's upload in seconds; 0 if the store does not say it, or for a local file."""


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, and the counts of those that are not used."""

    root: str
    """Folder of the source: an absolute path, or a URI."""
    files: tuple[SourceFile, ...]
    """Files with the wanted suffix, sorted by name."""
    unlisted: tuple[UnlistedFiles, ...] = ()
    """Other files of the folder, by reason."""
    lists: tuple[str, ...] = ()
    """Names of the wanted lists that are in the folder."""


def find_source_files(
    place: str, suffixes: Sequence[str], options: SourceOptions, problems: Problems, lists: Sequence[str] = ()
) -> SourceFiles:
    """Return the files of a source whose names end in one of some suffixes, in any case.

    Files and folders whose names begin with `.` or `_` are not used; they are counted as the others are. Of a single
    file and of a glob, only what they name is counted.

    Args:
        place: path, glob or URI of an existing source.
        suffixes: suffixes of the wanted files, in lower case.
        options: further folders and the permission for links.
        problems: where links out of the source and folders that cannot be read are added.
        lists: names in the source's folder of files that are read, so that they are not counted.

    Raises:
        UserError: a URI does not exist, or its store does not answer.
    """
    if is_uri(place):
        return _find_remote(place, tuple(suffixes), lists)
    return _find_local(place, tuple(suffixes), options, problems, lists)


def _find_local(
    place: str, suffixes: tuple[str, ...], options: SourceOptions, problems: Problems, lists: Sequence[str]
) -> SourceFiles:
    pattern, whole = is_pattern(place), Path(place).is_dir()
    folder = place if whole else (fixed_folder(place) or ".") if pattern else str(Path(place).parent)
    tree = FileTree(Path(folder), [Path(root) for root in options.roots if not is_uri(root)], options.follow_links)
    counts = UnlistedCounts(tree.root)
    if pattern:
        found = sorted(os.path.abspath(path) for path in glob.glob(place, recursive=True) if not os.path.isdir(path))
    elif whole:
        found = sorted(_walk(tree, suffixes, problems))
    else:
        found = [os.path.abspath(place)]
    files = []
    for path in found:
        if not path.lower().endswith(suffixes):
            counts.add(f"not {_name_suffixes(suffixes)}", path)
            continue
        try:
            real = tree.find(path)
        except ValueError as error:
            problems.add(path, None, str(error))
            continue
        files.append(SourceFile(real, os.path.relpath(real, tree.root)))
    if whole:
        tree.count_unlisted(counts, [Path(tree.root, name) for name in lists], _AUDIO, [tree.root])
    there = tuple(name for name in lists if Path(tree.root, name).is_file())
    return SourceFiles(tree.root, tuple(sorted(files, key=lambda file: file.name)), counts.counts(), there)


def _walk(tree: FileTree, suffixes: tuple[str, ...], problems: Problems) -> Iterator[str]:
    """Yield the absolute paths of all files with a suffix below the root."""
    waiting, seen = [tree.root], set[str]()
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            names = list(tree.entries(folder))
            waiting += [f"{folder}/{name}" for name in tree.folders(folder)]
        except ValueError as error:
            problems.add(folder, None, str(error))
            continue
        for name in names:
            path = f"{folder}/{name}"
            if name[0] not in "._" and name.lower().endswith(suffixes) and not os.path.isdir(path):
                yield path


def _find_remote(place: str, suffixes: tuple[str, ...], lists: Sequence[str]) -> SourceFiles:
    """List a folder, the files of a pattern, or one file of an object store."""
    bare, mark, query = place.partition("?")
    pattern = is_pattern(bare)
    root = fixed_folder(bare) + mark + query if pattern else place.rstrip("/")
    filesystem, base = locate_file(root, _OPTION)
    base = base.rstrip("/")
    try:
        info = filesystem.get_file_info(base)
        if info.type == fs.FileType.File:
            folder, _, name = bare.rpartition("/")
            return SourceFiles(folder + mark + query, (SourceFile(place, name, *_read_listing(info)),))
        listed = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"The data set {place} cannot be listed: {str(error).rstrip('.')}. Check that the store can be reached and "
            "its keys are set on every node."
        ) from error
    infos = {info.path[len(base) + 1 :]: info for info in listed if info.type == fs.FileType.File}
    names = sorted(infos)
    there = tuple(name for name in lists if name in names)
    if pattern:
        wanted = _compile(bare[len(fixed_folder(bare)) + 1 :])
        names = [name for name in names if wanted.fullmatch(name)]
    if not names:
        raise UserError(f"The data set {place} does not exist or has no files. Give an existing folder or file.")
    counts, files = UnlistedCounts(root), []
    for name in names:
        parts = name.split("/")
        if any(part[0] in "._" for part in parts if part):
            counts.add("hidden, or in skipped folders: a name begins with '.' or '_'", name)
        elif name.lower().endswith(suffixes):
            files.append(SourceFile(join_uri(root, name), name, *_read_listing(infos[name])))
        elif name not in lists:
            counts.add(f"not {_name_suffixes(suffixes)}", name)
    return SourceFiles(root, tuple(files), counts.counts(), there)


def _read_listing(info: fs.FileInfo) -> tuple[int, int]:
    """Return the size and the time of an object. Listings and single queries agree only on whole seconds."""
    return info.size if info.size is not None else -1, (info.mtime_ns or 0) // 10**9


def _name_suffixes(suffixes: tuple[str, ...]) -> str:
    return "Parquet" if ".parquet" in suffixes else "tar archives" if ".tar" in suffixes else " or ".join(suffixes)


def _compile(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a glob: `**/` stands for any folders, `*`, `?` and `[...]` for no `/`."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = ""
    for part in parts:
        if part[:1] == "[" and len(part) > 2:
            inner = part[1:-1].replace("\\", r"\\")
            text += f"[^{inner[1:]}]" if inner[0] == "!" else f"[{inner}]"
        else:
            text += known.get(part) or re.escape(part)
    return re.compile(text, re.DOTALL)


def open_source_file(path: str) -> pa.NativeFile:
    """Open a local file or an object for reading.

    Raises:
        OSError: the file cannot be opened.
        UserError: the kind of URI is unknown.
    """
    filesystem, name = locate_file(path, _OPTION) if is_uri(path) else (fs.LocalFileSystem(), path)
    return filesystem.open_input_file(name)
