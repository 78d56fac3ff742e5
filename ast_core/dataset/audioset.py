"""Read AudioSet's layout. The reader adds bad rows to `problems` and continues, so that the user sees all of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.csv_rows import csv_rows
from ast_core.dataset.file_tree import AUDIO_SUFFIXES, FileTree
from ast_core.dataset.problems import Problems, read_lines, require_printable, shorten
from ast_core.errors import UserError

AUDIOSET_SPLITS = ("balanced_train", "unbalanced_train", "eval")
_SECONDS = r"(\d{1,9}(?:\.\d{1,6})?)"
_SEGMENT = re.compile(rf'([A-Za-z0-9_-]{{1,64}})\s*,\s*{_SECONDS}\s*,\s*{_SECONDS}\s*,\s*(?:"([^"]*)"|([^",]+))')


def load_audioset(source: Path, problems: Problems) -> Manifest:
    """Read AudioSet's segments CSVs and find the audio of each clip.

    The labels are those of class_labels_indices.csv, in its order, that at least one clip has: a class without a
    positive clip has no average precision. Complete AudioSet has all 527, a subset may have fewer.
    The audio is searched in `audio/` and in folders with the names of the splits. A file may be named ID, YID, ID_START
    or YID_START (START in seconds or milliseconds), with any audio suffix.

    Raises:
        UserError: the labels or all segments CSVs are missing.
    """
    names = _read_labels(source / "class_labels_indices.csv", problems)
    lists = {split: source / f"{split}_segments.csv" for split in AUDIOSET_SPLITS}
    if not any(path.is_file() for path in lists.values()):
        names_of_lists = ", ".join(path.name for path in lists.values())
        raise UserError(f"{source} has no segments file; add at least one of {names_of_lists}.")
    tree = FileTree(source)
    index = _index_audio(tree, problems)
    mid_index = {mid: number for number, mid in enumerate(names)}
    clips, ids = [], set[str]()
    for split, path in lists.items():
        for number, text in read_lines(path, problems) if path.is_file() else ():
            if not text.strip() or text.lstrip().startswith("#"):
                continue
            try:
                clip = _parse_segment(text, split, mid_index, index, tree)
                if clip.clip_id in ids:
                    raise ValueError(f"the clip {clip.clip_id} is listed twice")
            except ValueError as error:
                problems.add(path, number, str(error))
                continue
            ids.add(clip.clip_id)
            clips.append(clip)
    return _keep_used_labels(clips, list(names.values()))


def _read_labels(path: Path, problems: Problems) -> dict[str, str]:
    """Read the labels' display names by machine id."""
    names: dict[str, str] = {}
    shown: set[str] = set()
    for number, row in csv_rows(path, ("mid", "display_name"), problems):
        mid, name = row["mid"], row["display_name"]
        try:
            require_printable("label", name)
            if mid in names or name in shown:
                raise ValueError(f"the label {shorten(mid)}, {shorten(name)} is listed twice")
        except ValueError as error:
            problems.add(path, number, str(error))
        names[mid] = name
        shown.add(name)
    return names


def _parse_segment(text: str, split: str, mid_index: dict[str, int], index: dict[str, str], tree: FileTree) -> Clip:
    """Parse one row of a segments CSV; ValueError says what is wrong with it."""
    match = _SEGMENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'expected YTID, start, end, "mid,mid" and found {shorten(text)}')
    ytid, start, end = match[1], float(match[2]), float(match[3])
    mids = [mid.strip() for mid in (match[4] or match[5] or "").split(",")]
    unknown = [mid for mid in mids if mid not in mid_index]
    if unknown:
        raise ValueError(f"the labels {shorten(', '.join(unknown))} are not in class_labels_indices.csv")
    if end <= start:
        raise ValueError(f"the segment ends at {end:g} s, before it starts at {start:g} s")
    short = f"{start:.3f}".rstrip("0").rstrip(".")
    stems = (f"{ytid}_{short}", f"{ytid}_{start:.3f}", f"{ytid}_{round(start * 1000)}", ytid)
    path = next((index[stem] for prefix in ("", "Y") for stem in (prefix + s for s in stems) if stem in index), "")
    if path:
        tree.find(path)
    return Clip(f"{ytid}_{short}", path, tuple(sorted({mid_index[mid] for mid in mids})), split)


def _index_audio(tree: FileTree, problems: Problems) -> dict[str, str]:
    """Map each audio file's name without suffix to its path; of two files, prefer the suffix that comes first."""
    folders = ["audio", *AUDIOSET_SPLITS, *(f"{split}_segments" for split in AUDIOSET_SPLITS)]
    index: dict[str, str] = {}
    for folder in folders:
        for path in tree.audio(os.path.join(tree.root, folder), problems):
            stem = os.path.splitext(os.path.basename(path))[0]
            if stem not in index or _rank(path) < _rank(index[stem]):
                index[stem] = path
    return index


def _rank(path: str) -> int:
    """Return the place of a path's suffix in `AUDIO_SUFFIXES`; the lowest is preferred."""
    return AUDIO_SUFFIXES.index(os.path.splitext(path)[1].lower())


def _keep_used_labels(clips: list[Clip], names: list[str]) -> Manifest:
    used = sorted({label for clip in clips for label in clip.labels})
    if len(used) == len(names):
        return Manifest(tuple(clips), tuple(names), False, "audioset")
    new = {old: number for number, old in enumerate(used)}
    renumbered = (Clip(c.clip_id, c.path, tuple(new[label] for label in c.labels), c.split) for c in clips)
    return Manifest(tuple(renumbered), tuple(names[old] for old in used), False, "audioset")
