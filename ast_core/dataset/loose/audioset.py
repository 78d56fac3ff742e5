"""Read AudioSet's layout. The reader adds bad rows to `problems` and continues, so that the user sees all of them."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest, UnlistedFiles
from ast_core.dataset.loose.csv_rows import csv_rows
from ast_core.dataset.loose.file_tree import FileTree
from ast_core.dataset.loose.segment_files import NO_ROW, Segment, SegmentFiles
from ast_core.dataset.problems import Problems, UnlistedCounts, read_lines, require_printable, shorten
from ast_core.errors import UserError

AUDIOSET_SPLITS = ("balanced_train", "unbalanced_train", "eval")
_AUDIO_FOLDERS = ("audio", *AUDIOSET_SPLITS, *(f"{split}_segments" for split in AUDIOSET_SPLITS))
_SECONDS = r"(\d{1,9}(?:\.\d{1,6})?)"
_SEGMENT = re.compile(rf'([A-Za-z0-9_-]{{1,64}})\s*,\s*{_SECONDS}\s*,\s*{_SECONDS}\s*,\s*(?:"([^"]*)"|([^",]+))')


def load_audioset(source: Path, tree: FileTree, problems: Problems, label_names: str = "") -> Manifest:
    """Read AudioSet's segments CSVs and find the audio of each clip.

    The labels are those of class_labels_indices.csv, in its order, that at least one clip has: a class without a
    positive clip has no average precision. Complete AudioSet has all 527, a subset may have fewer.
    The audio may lie anywhere below the source. `SegmentFiles` says how its files may be named.

    Args:
        source: folder of the lists.
        tree: the source's files.
        problems: where bad rows are added.
        label_names: list of labels to use instead of class_labels_indices.csv in the folder.

    Raises:
        UserError: the labels or all segments CSVs are missing.
    """
    label_list = Path(label_names) if label_names else source / "class_labels_indices.csv"
    names = _read_labels(label_list, problems)
    lists = {split: source / f"{split}_segments.csv" for split in AUDIOSET_SPLITS}
    if not any(path.is_file() for path in lists.values()):
        names_of_lists = ", ".join(path.name for path in lists.values())
        raise UserError(f"{source} has no segments file; add at least one of {names_of_lists}.")
    segments, numbers = _read_segments(lists, {mid: number for number, mid in enumerate(names)}, problems)
    counts = UnlistedCounts(tree.root)
    matched = SegmentFiles(segments)
    for file in _audio_files(tree, problems):
        matched.add(file)
    clips = []
    for segment, file, number in zip(segments, matched.files, numbers, strict=True):
        try:
            found = tree.find(file) if file else ""
        except ValueError as error:
            problems.add(lists[segment.split], number, str(error))
            continue
        clips.append(Clip(segment.clip_id, found, segment.labels, segment.split))
    for reason, file in matched.others():
        counts.add(reason, file)
        tree.mark(file)
    tree.count_unlisted(counts, [source / "class_labels_indices.csv", label_list, *lists.values()], NO_ROW, tree.roots)
    return _keep_used_labels(clips, list(names.values()), counts.counts())


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


def _read_segments(
    lists: dict[str, Path], mid_index: dict[str, int], problems: Problems
) -> tuple[list[Segment], array[int]]:
    """Read the segments CSVs that exist; return the segments and the row of each."""
    segments, numbers, ids = list[Segment](), array("L"), set[str]()
    for split, path in lists.items():
        for number, text in read_lines(path, problems) if path.is_file() else ():
            if not text.strip() or text.lstrip().startswith("#"):
                continue
            try:
                segment = _parse_segment(text, split, mid_index)
                if segment.clip_id in ids:
                    raise ValueError(f"the clip {segment.clip_id} is listed twice")
            except ValueError as error:
                problems.add(path, number, str(error))
                continue
            ids.add(segment.clip_id)
            segments.append(segment)
            numbers.append(number)
    return segments, numbers


def _parse_segment(text: str, split: str, mid_index: dict[str, int]) -> Segment:
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
    return Segment(ytid, start, end, tuple(sorted({mid_index[mid] for mid in mids})), split)


def _audio_files(tree: FileTree, problems: Problems) -> Iterator[str]:
    """Yield the audio files below all roots.

    Folders that cannot be read are problems only where audio is expected; elsewhere they are counted.
    """
    seen: set[str] = set()
    for name in _AUDIO_FOLDERS:
        yield from tree.audio(f"{tree.root}/{name}", problems, seen)
    for folder in tree.roots:
        yield from tree.audio(folder, Problems(), seen)


def _keep_used_labels(clips: list[Clip], names: list[str], unlisted: tuple[UnlistedFiles, ...]) -> Manifest:
    used = sorted({label for clip in clips for label in clip.labels})
    if len(used) == len(names):
        return Manifest(tuple(clips), tuple(names), False, "audioset", unlisted=unlisted)
    new = {old: number for number, old in enumerate(used)}
    renumbered = (Clip(c.clip_id, c.path, tuple(new[label] for label in c.labels), c.split) for c in clips)
    labels = tuple(names[old] for old in used)
    return Manifest(tuple(renumbered), labels, False, "audioset", unlisted=unlisted)
