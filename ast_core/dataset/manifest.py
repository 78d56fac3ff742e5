"""Read a data set's lists into clips with ids, paths, labels and splits.

All problems are reported together, with their row numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ast_core.config import Layout
from ast_core.dataset.archives.webdataset import detect_archives, load_audioset_archives, load_webdataset
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.label_names import fix_labels, read_label_names
from ast_core.dataset.layouts import (
    ACCEPTED,
    CONTAINER_LAYOUTS,
    detect_layout,
    holds_members,
    is_manifest_file,
)
from ast_core.dataset.loose.audioset import load_audioset
from ast_core.dataset.loose.class_folders import load_class_folders
from ast_core.dataset.loose.esc50 import load_esc50
from ast_core.dataset.loose.file_tree import FileTree
from ast_core.dataset.loose.object_tree import Mirror, mirror_recordings, mirror_source
from ast_core.dataset.loose.speech_commands import load_speech_commands
from ast_core.dataset.loose.user_table import load_user_table
from ast_core.dataset.parquet.parquet_audio import load_audioset_copy, load_parquet_audio
from ast_core.dataset.problems import Problems, canonical_name, shorten
from ast_core.dataset.source_files import find_source_files
from ast_core.dataset.source_options import Columns, SourceOptions
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES, group_clips, place_clips
from ast_core.errors import UserError, require
from ast_core.storage.file_systems import forget_file_systems
from ast_core.storage.places import is_pattern, is_uri, matches_files

__all__ = ["Clip", "Columns", "Manifest", "detect_layout", "load_manifest"]

_LOOSE: dict[str, Callable[[Path, FileTree, Problems], Manifest]] = {
    "esc50": load_esc50,
    "speech_commands": load_speech_commands,
    "folders": load_class_folders,
}
"""Loaders of the layouts whose recordings are files of their own."""
_CONTAINERS: dict[str, Callable[[str, SourceOptions, Problems], Manifest]] = {
    "parquet": load_parquet_audio,
    "webdataset": load_webdataset,
}
"""Loaders of the layouts whose files hold many recordings; they take a path, glob or URI."""


def load_manifest(
    source: Path | str,
    layout: Layout = "auto",
    roots: Sequence[Path] = (),
    follow_links: bool = False,
    group: str = "",
    split_rule: int = TENTHS_OF_CLASSES,
    columns: Columns = Columns(),  # noqa: B008  # it is frozen
    label_names: str = "",
) -> Manifest:
    """Read the lists of a data set.

    No audio is decoded. Of files without an audio suffix the first bytes are read.

    Args:
        source: folder of the data set, a manifest file, or a file, folder, glob or URI of Parquet files or tar
            archives.
        layout: layout of the source; `auto` detects it.
        roots: further folders in which listed files or the targets of links may lie.
        follow_links: whether links may lead anywhere.
        group: column, or regular expression with one group, whose value is the group of a clip.
        split_rule: rule for clips without a split, `TENTHS_OF_CLASSES` or `HASH_ALONE`.
        columns: columns of Parquet files that cannot be recognised.
        label_names: CSV file with the columns mid and display_name that fixes the names and the order of all classes.

    Raises:
        UserError: the source does not exist, has no known layout, is empty, or has bad rows, of which 20 are shown.
    """
    return load_source(source, layout, SourceOptions(roots, follow_links, group, columns, label_names), split_rule)


def load_source(source: Path | str, layout: Layout, options: SourceOptions, split_rule: int) -> Manifest:
    """Read the lists of a data set as `load_manifest` does, with all options in one object."""
    problems = Problems()
    manifest = read_manifest(source, problems, layout, options, split_rule)
    problems.check()
    if not manifest.clips:
        raise UserError(f"{source}, read with the layout {manifest.layout}, lists no clips. {ACCEPTED}")
    return manifest


def read_manifest(
    source: Path | str,
    problems: Problems,
    layout: Layout = "auto",
    options: SourceOptions = SourceOptions(),  # noqa: B008  # it is frozen
    split_rule: int = TENTHS_OF_CLASSES,
) -> Manifest:
    """Read the lists of a data set as `load_source` does, but add bad rows to `problems` and continue.

    Raises:
        UserError: the source does not exist or has no known layout, or an option does not fit it.
    """
    place = source if isinstance(source, str) else os.fspath(source)
    _check_place(place, options)
    forget_file_systems()
    with _open_mirror(place, layout, options) as mirror:
        chosen = detect_layout(place, options.roots, options.follow_links, mirror) if layout == "auto" else layout
        if chosen in CONTAINER_LAYOUTS:
            manifest = _group(_CONTAINERS[chosen](place, options, problems), place, options, problems)
        elif chosen == "audioset" and (load_copy := _find_copy(place, options, mirror)):
            manifest = _group(load_copy(place, options, problems), place, options, problems)
        else:
            manifest = _load_loose(place, chosen, options, problems, mirror)
    _report_similar_names(place, "classes", manifest.labels, problems)
    clips = place_clips(manifest.clips, split_rule)
    _report_similar_names(place, "splits", sorted({clip.split for clip in clips}), problems)
    return dataclasses.replace(manifest, clips=clips)


def _check_place(place: str, options: SourceOptions) -> None:
    """Raise UserError if a local source or a further folder does not exist, or further folders do not fit."""
    roots = ", ".join(map(str, options.roots))
    if is_uri(place):
        fits = not options.roots or (len(options.roots) == 1 and is_uri(options.roots[0]))
        require(fits, f"data.root is {roots}, but {place} is in an object store; give one URI, or leave it empty.")
        return
    found = matches_files(place) if is_pattern(place) else Path(place).exists()
    require(found, f"The data set {place} does not exist. Give an existing folder or manifest file.")
    if any(is_uri(root) for root in options.roots):
        require(len(options.roots) == 1, f"data.root is {roots}; give one URI, or only folders of this machine.")
        return
    missing = [str(root) for root in options.roots if not Path(root).is_dir()]
    require(not missing, f"data.root {', '.join(missing)} is not a folder; give an existing folder.")


def _open_mirror(
    place: str, layout: Layout, options: SourceOptions
) -> contextlib.AbstractContextManager[Mirror | None]:
    """Return the mirror of recordings that are objects of a store; None if they are local or inside other files."""
    uri = next((str(root) for root in options.roots if is_uri(root)), "")
    if not is_uri(place):
        return mirror_recordings(Path(place), uri) if uri else contextlib.nullcontext()
    inside = layout in CONTAINER_LAYOUTS or is_pattern(place) or (holds_members(place) and not is_manifest_file(place))
    return contextlib.nullcontext() if inside else mirror_source(place, uri)


def _group(manifest: Manifest, place: str, options: SourceOptions, problems: Problems) -> Manifest:
    return group_clips(manifest, options.group, place, problems) if options.group else manifest


def _find_copy(
    place: str, options: SourceOptions, mirror: Mirror | None
) -> Callable[[str, SourceOptions, Problems], Manifest] | None:
    """Return the loader of a copy of AudioSet in Parquet files or tar archives; None if it has Google's lists."""
    source = mirror.source if mirror else Path(place)
    if any(source.glob("*_segments.csv")):
        return None
    if detect_archives(place, options):
        return load_audioset_archives
    if is_uri(place) or is_pattern(place) or source.is_file():
        return load_audioset_copy
    return load_audioset_copy if find_source_files(place, (".parquet",), options, Problems()).files else None


def _load_loose(
    place: str, layout: Layout, options: SourceOptions, problems: Problems, mirror: Mirror | None
) -> Manifest:
    """Read a layout whose recordings are files of their own."""
    if mirror is not None:
        fits = is_manifest_file(place) == (layout == "manifest")
        require(fits, f"The layout {layout} does not fit {place}. {ACCEPTED}")
        with mirror.naming(problems) as named:
            return mirror.restore(_load_files(mirror.source, mirror.tree, layout, options, named))
    source = Path(place)
    fits = source.is_file() if layout == "manifest" else source.is_dir()
    require(fits, f"The layout {layout} does not fit {place}. {ACCEPTED}")
    folders = [Path(root) for root in options.roots]
    tree = FileTree(source if source.is_dir() else source.parent, folders, options.follow_links)
    return _load_files(source, tree, layout, options, problems)


def _load_files(source: Path, tree: FileTree, layout: Layout, options: SourceOptions, problems: Problems) -> Manifest:
    """Read the lists of a local source, whose recordings are in a tree of files."""
    if layout == "manifest":
        manifest = load_user_table(source, tree, problems, options.group)
    elif layout == "audioset":
        manifest = load_audioset(source, tree, problems, options.label_names)
    else:
        manifest = _LOOSE[layout](source, tree, problems)
    if options.label_names:
        manifest = fix_labels(
            manifest, read_label_names(options.label_names, Problems() if layout == "audioset" else problems), problems
        )
    return _group(manifest, tree.root, options, problems)


def _report_similar_names(source: str, what: str, given: Sequence[str], problems: Problems) -> None:
    """Add names that differ only in case, spaces or Unicode form: some disks and people take them for one."""
    spellings: dict[str, list[str]] = {}
    for name in given:
        spellings.setdefault(canonical_name(name), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            listed = " and ".join(shorten(name) for name in names)
            problems.add(
                source, None, f"the {what} {listed} differ only in case, spaces or Unicode form; give them one name"
            )
