"""Read a data set's lists into clips with ids, paths, labels and splits.

All problems are reported together, with their row numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from ast_core.config import Layout
from ast_core.dataset.audioset import load_audioset
from ast_core.dataset.class_folders import load_class_folders
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.esc50 import load_esc50
from ast_core.dataset.file_tree import FileTree, is_audio
from ast_core.dataset.problems import Problems, canonical_name, shorten
from ast_core.dataset.speech_commands import load_speech_commands
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES, group_clips, place_clips
from ast_core.dataset.user_table import MANIFEST_SUFFIXES, load_user_table
from ast_core.errors import UserError

__all__ = ["Clip", "Manifest", "detect_layout", "load_manifest"]

ACCEPTED = """Accepted are
  audioset         class_labels_indices.csv, audio/ and at least one of
                   balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
  esc50            meta/esc50.csv, audio/
  speech_commands  WORD/*.wav, validation_list.txt, testing_list.txt
  folders          CLASS/*.wav, or train/CLASS/*.wav, validation/CLASS/*.wav, test/CLASS/*.wav
  manifest         a .csv, .json, .jsonl or .parquet file: columns path, labels and optionally clip_id,
                   split, start_s, end_s; or one of AST's own JSON lists"""

_LOADERS: dict[str, Callable[[Path, FileTree, Problems], Manifest]] = {
    "audioset": load_audioset,
    "esc50": load_esc50,
    "speech_commands": load_speech_commands,
    "folders": load_class_folders,
    "manifest": load_user_table,
}


def load_manifest(
    source: Path,
    layout: Layout = "auto",
    roots: Sequence[Path] = (),
    follow_links: bool = False,
    group: str = "",
    split_rule: int = TENTHS_OF_CLASSES,
) -> Manifest:
    """Read the lists of a data set.

    No audio is decoded. Of files without an audio suffix the first bytes are read.

    Args:
        source: folder of the data set, or a manifest file.
        layout: layout of the source; `auto` detects it.
        roots: further folders in which listed files or the targets of links may lie.
        follow_links: whether links may lead anywhere.
        group: column of a manifest, or regular expression with one group, whose value is the group of a clip.
        split_rule: rule for clips without a split, `TENTHS_OF_CLASSES` or `HASH_ALONE`.

    Raises:
        UserError: the source does not exist, has no known layout, is empty, or has bad rows, of which 20 are shown.
    """
    problems = Problems()
    manifest = read_manifest(source, problems, layout, roots, follow_links, group, split_rule)
    problems.check()
    if not manifest.clips:
        raise UserError(f"{source}, read with the layout {manifest.layout}, lists no clips. {ACCEPTED}")
    return manifest


def read_manifest(
    source: Path,
    problems: Problems,
    layout: Layout = "auto",
    roots: Sequence[Path] = (),
    follow_links: bool = False,
    group: str = "",
    split_rule: int = TENTHS_OF_CLASSES,
) -> Manifest:
    """Read the lists of a data set as `load_manifest` does, but add bad rows to `problems` and continue.

    The arguments are those of `load_manifest`.

    Raises:
        UserError: the source does not exist or has no known layout, or `group` does not fit it.
    """
    if not source.exists():
        raise UserError(f"The data set {source} does not exist. Give an existing folder or manifest file.")
    chosen = detect_layout(source, roots, follow_links) if layout == "auto" else layout
    if source.is_dir() == (chosen == "manifest") or not (source.is_dir() or source.is_file()):
        raise UserError(f"The layout {chosen} does not fit {source}. {ACCEPTED}")
    missing = [str(root) for root in roots if not root.is_dir()]
    if missing:
        raise UserError(f"data.root {', '.join(missing)} is not a folder; give an existing folder.")
    tree = FileTree(source if source.is_dir() else source.parent, roots, follow_links)
    loader = functools.partial(load_user_table, group=group) if chosen == "manifest" else _LOADERS[chosen]
    manifest = loader(source, tree, problems)
    _report_similar_names(source, "classes", manifest.labels, problems)
    if group:
        manifest = group_clips(manifest, group, source if source.is_dir() else source.parent, problems)
    clips = place_clips(manifest.clips, split_rule)
    _report_similar_names(source, "splits", sorted({clip.split for clip in clips}), problems)
    return dataclasses.replace(manifest, clips=clips)


def _report_similar_names(source: Path, what: str, given: Sequence[str], problems: Problems) -> None:
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


def detect_layout(source: Path, roots: Sequence[Path] = (), follow_links: bool = False) -> Layout:
    """Detect the layout of an existing folder or file by the files that only this layout has.

    Raises:
        UserError: no layout fits; the text lists the accepted layouts.
    """
    if source.is_file() and source.suffix.lower() in MANIFEST_SUFFIXES:
        return "manifest"
    if any(source.glob("*_segments.csv")):
        return "audioset"
    if (source / "meta" / "esc50.csv").is_file():
        return "esc50"
    if (source / "testing_list.txt").is_file() or (source / "validation_list.txt").is_file():
        return "speech_commands"
    if source.is_dir() and _has_class_folders(FileTree(source, roots, follow_links)):
        return "folders"
    raise UserError(f"The layout of {source} is not recognised. {ACCEPTED}")


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
