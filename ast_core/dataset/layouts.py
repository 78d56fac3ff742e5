"""Recognise the layout of a data set by the files that only this layout has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa

from ast_core.config import Layout
from ast_core.dataset.archives.webdataset import detect_archives
from ast_core.dataset.loose.file_tree import FileTree, is_audio
from ast_core.dataset.loose.object_tree import Mirror, mirror_source
from ast_core.dataset.loose.user_table import MANIFEST_SUFFIXES
from ast_core.dataset.parquet.parquet_columns import find_audio_column, is_audioset_copy
from ast_core.dataset.parquet.parquet_rows import read_schema
from ast_core.dataset.problems import Problems
from ast_core.dataset.source_files import find_source_files
from ast_core.dataset.source_options import SourceOptions
from ast_core.errors import UserError
from ast_core.storage.places import is_pattern, is_uri

ACCEPTED = """Accepted are
  audioset         class_labels_indices.csv, audio/ and at least one of
                   balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
  esc50            meta/esc50.csv, audio/
  speech_commands  WORD/*.wav, validation_list.txt, testing_list.txt
  folders          CLASS/*.wav, or train/CLASS/*.wav, validation/CLASS/*.wav, test/CLASS/*.wav
  manifest         a .csv, .json, .jsonl or .parquet file: columns path, labels and optionally clip_id,
                   split, start_s, end_s; or one of AST's own JSON lists
  parquet          a file, folder, glob or URI of .parquet files with the recordings inside: a binary column or a
                   struct of bytes and path, and labels; the AudioSet copy of this kind is audioset, too
  webdataset       a file, folder, glob or URI of .tar files with KEY.flac (or another audio suffix) and labels
                   in KEY.json (key label or labels), KEY.cls or KEY.txt; with the folders or files bal_train,
                   unbal_train and eval it is audioset, too"""
CONTAINER_LAYOUTS = ("parquet", "webdataset")
"""Layouts whose files hold many recordings each."""


_TRIED = 5
"""Parquet files whose columns are looked at to recognise a layout; the first ones may be damaged."""


def detect_layout(
    source: Path | str, roots: Sequence[Path | str] = (), follow_links: bool = False, mirror: Mirror | None = None
) -> Layout:
    """Detect the layout of an existing folder, file, glob or URI by the files that only this layout has.

    Args:
        source: folder, file, glob or URI.
        roots: further folders in which listed files or the targets of links may lie.
        follow_links: whether links may lead anywhere.
        mirror: what `mirror_source` yields for a URI, if the caller has it already.

    Raises:
        UserError: no layout fits; the text lists the accepted layouts.
    """
    place = os.fspath(source)
    found: Layout | None = None
    if is_manifest_file(place):
        found = "manifest"
    elif is_uri(place) and not is_pattern(place) and not holds_members(place):
        with contextlib.nullcontext(mirror) if mirror else mirror_source(place) as remote:
            tree = remote.tree
            found = _detect_folder(remote.source, lambda: tree)
    elif not is_uri(place) and Path(place).is_dir():
        local = [Path(root) for root in roots if not is_uri(root)]
        found = _detect_folder(Path(place), lambda: FileTree(Path(place), local, follow_links))
    options, problems = SourceOptions(roots, follow_links), Problems()
    found = found or detect_archives(place, options) or detect_parquet(place, options, problems)
    if found is not None:
        return found
    problems.check()  # files may be links that lead out of the source
    raise UserError(f"The layout of {source} is not recognised. {ACCEPTED}")


def is_manifest_file(place: str) -> bool:
    """Return whether a source is one file that lists recordings, by its suffix and the columns of Parquet files."""
    suffix = _suffix_of(place)
    if is_pattern(place) or suffix not in MANIFEST_SUFFIXES or not (is_uri(place) or Path(place).is_file()):
        return False
    return suffix != ".parquet" or detect_parquet(place, SourceOptions(), Problems()) is None


def holds_members(place: str) -> bool:
    """Return whether the name of a source is that of a file that holds recordings, such as a Parquet file."""
    return _suffix_of(place) in {".parquet", ".tar"}


def _suffix_of(place: str) -> str:
    return PurePosixPath(place.partition("?")[0] if is_uri(place) else place).suffix.lower()


def _detect_folder(source: Path, open_tree: Callable[[], FileTree]) -> Layout | None:
    """Return the layout of recordings that are files of their own; None if no such layout fits."""
    if any(source.glob("*_segments.csv")):
        return "audioset"
    if (source / "meta" / "esc50.csv").is_file():
        return "esc50"
    if (source / "testing_list.txt").is_file() or (source / "validation_list.txt").is_file():
        return "speech_commands"
    if source.is_dir() and _has_class_folders(open_tree()):
        return "folders"
    return None


def detect_parquet(source: str, options: SourceOptions, problems: Problems) -> Layout | None:
    """Return `audioset` or `parquet` if a source has Parquet files with recordings inside, else None.

    A file with the columns `path` and `labels` is a manifest, unless its recordings are in a struct.

    Raises:
        UserError: a URI does not exist, or its store does not answer.
    """
    damaged = False
    for file in find_source_files(source, (".parquet",), options, problems).files[:_TRIED]:
        try:
            schema = read_schema(file.path)
        except ValueError:
            damaged = True
            continue
        audio = find_audio_column(schema)
        manifest = (
            {"path", "labels"} <= set(schema.names) and audio and not pa.types.is_struct(schema.field(audio).type)
        )
        if audio and not manifest:
            return "audioset" if is_audioset_copy(schema, file.name) else "parquet"
    return "parquet" if damaged and not Path(source).is_file() else None


def _has_class_folders(tree: FileTree) -> bool:
    """Return whether there is audio one or two folders deep."""
    try:
        classes = [f"{tree.root}/{name}" for name in tree.folders(tree.root)]
        deeper = [f"{folder}/{name}" for folder in classes for name in tree.folders(folder)]
        if any(is_audio(name, kind) for folder in classes + deeper for name, kind in tree.entries(folder).items()):
            return True
        return any(True for folder in classes + deeper for _ in tree.audio_in(folder))
    except ValueError as error:
        raise UserError(f"{error}.") from error
