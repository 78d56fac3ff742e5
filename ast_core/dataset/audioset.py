"""Readers of the data sets' own layouts. Each notes bad rows in `problems` and goes on: all are told at once."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ast_core.dataset.file_tree import (
    AUDIO_SUFFIXES,
    Clip,
    Manifest,
    Problems,
    Tree,
    is_audio,
    lines_of,
    require_printable,
    shorten,
)
from ast_core.errors import UserError

AUDIOSET_SPLITS = ("balanced_train", "unbalanced_train", "eval")
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
}
"""Folder names taken for splits."""
_SECONDS = r"(\d{1,9}(?:\.\d{1,6})?)"
_SEGMENT = re.compile(rf'([A-Za-z0-9_-]{{1,64}})\s*,\s*{_SECONDS}\s*,\s*{_SECONDS}\s*,\s*(?:"([^"]*)"|([^",]+))')


def hashed_split(key: str) -> str:
    """`train`, `validation` or `test` (80, 10, 10 in a hundred) by the SHA-256 of a clip's name: it never moves."""
    place = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") % 100
    return "train" if place < 80 else "validation" if place < 90 else "test"


def csv_rows(path: Path, columns: Iterable[str], problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the first line, and cells by column, of each row of a CSV file with a header.

    A column that is missing or there twice is a problem, too, and there are no rows then.

    Raises:
        UserError: the file is missing.
    """
    rows = _csv_cells(path, problems)
    number, header = next(rows, (None, []))
    if not _has_columns(path, number, [name.strip() for name in header], columns, problems):
        return
    header = [name.strip() for name in header]
    for number, row in rows:
        if len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        else:
            problems.add(path, number, f"{len(row)} cells where the header has {len(header)}")


def _csv_cells(path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the number of their first line: a quote that is never closed begins there."""
    reader = csv.reader((text + "\n" for _, text in lines_of(path, problems)), skipinitialspace=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(path, number, f"not a CSV row ({error})")
            continue
        if row:
            yield number, row


def _has_columns(path: Path, number: int | None, header: list[str], columns: Iterable[str], problems: Problems) -> bool:
    missing = [name for name in columns if name not in header]
    if missing:
        found = shorten(", ".join(header))
        problems.add(path, number, f"no column {', '.join(missing)} in its first row; its columns are {found}")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        problems.add(path, number, f"the column {shorten(min(twice))} is there twice")
    return not (missing or twice)


def load_audioset(source: Path, problems: Problems) -> Manifest:
    """AudioSet's segments CSVs. Labels: those of class_labels_indices.csv, in its order, that occur in a CSV present.

    All 527 stay when all occur; a subset of AudioSet keeps only its own, since a class without a positive has no AP.
    The audio is searched in `audio/` and in folders named as the splits, by the names ID, YID, ID_START and YID_START
    (START in seconds or milliseconds) with any audio suffix.
    """
    names = _audioset_labels(source / "class_labels_indices.csv", problems)
    lists = {split: source / f"{split}_segments.csv" for split in AUDIOSET_SPLITS}
    if not any(path.is_file() for path in lists.values()):
        raise UserError(f"{source} has none of {', '.join(path.name for path in lists.values())}.")
    tree = Tree(source)
    index = _audio_by_stem(tree, problems)
    mid_index = {mid: number for number, mid in enumerate(names)}
    clips, ids = [], set[str]()
    for split, path in lists.items():
        for number, text in lines_of(path, problems) if path.is_file() else ():
            if not text.strip() or text.lstrip().startswith("#"):
                continue
            try:
                clip = _segment(text, split, mid_index, index, tree)
                if clip.clip_id in ids:
                    raise ValueError(f"the clip {clip.clip_id} is listed twice")
            except ValueError as error:
                problems.add(path, number, str(error))
                continue
            ids.add(clip.clip_id)
            clips.append(clip)
    return _with_used_labels(clips, list(names.values()))


def _audioset_labels(path: Path, problems: Problems) -> dict[str, str]:
    """Display name by machine id."""
    names: dict[str, str] = {}
    shown: set[str] = set()
    for number, row in csv_rows(path, ("mid", "display_name"), problems):
        mid, name = row["mid"], row["display_name"]
        try:
            require_printable("label", name)
            if mid in names or name in shown:
                raise ValueError(f"the label {shorten(mid)}, {shorten(name)} is there twice")
        except ValueError as error:
            problems.add(path, number, str(error))
        names[mid] = name
        shown.add(name)
    return names


def _segment(text: str, split: str, mid_index: dict[str, int], index: dict[str, str], tree: Tree) -> Clip:
    match = _SEGMENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'expected YTID, start, end, "mid,mid" and found {shorten(text)}')
    ytid, start, end = match[1], float(match[2]), float(match[3])
    mids = [mid.strip() for mid in (match[4] or match[5] or "").split(",")]
    unknown = [mid for mid in mids if mid not in mid_index]
    if unknown:
        raise ValueError(f"labels unknown to class_labels_indices.csv: {shorten(', '.join(unknown))}")
    if end <= start:
        raise ValueError(f"the segment ends at {end:g} s, before it starts at {start:g} s")
    short = f"{start:.3f}".rstrip("0").rstrip(".")
    stems = (f"{ytid}_{short}", f"{ytid}_{start:.3f}", f"{ytid}_{round(start * 1000)}", ytid)
    path = next((index[stem] for prefix in ("", "Y") for stem in (prefix + s for s in stems) if stem in index), "")
    if path:
        tree.find(path)
    return Clip(f"{ytid}_{short}", path, tuple(sorted({mid_index[mid] for mid in mids})), split)


def _audio_by_stem(tree: Tree, problems: Problems) -> dict[str, str]:
    """Path of each audio file by its name without suffix; of two, the one whose suffix is more wanted."""
    wanted = ["audio", *AUDIOSET_SPLITS, *(f"{split}_segments" for split in AUDIOSET_SPLITS)]
    index: dict[str, str] = {}
    for folder in wanted:
        for path in tree.audio(os.path.join(tree.root, folder), problems):
            stem = os.path.splitext(os.path.basename(path))[0]
            if stem not in index or _rank(path) < _rank(index[stem]):
                index[stem] = path
    return index


def _rank(path: str) -> int:
    return AUDIO_SUFFIXES.index(os.path.splitext(path)[1].lower())


def _with_used_labels(clips: list[Clip], names: list[str]) -> Manifest:
    used = sorted({label for clip in clips for label in clip.labels})
    if len(used) == len(names):
        return Manifest(tuple(clips), tuple(names), False, "audioset")
    new = {old: number for number, old in enumerate(used)}
    renumbered = (Clip(c.clip_id, c.path, tuple(new[label] for label in c.labels), c.split) for c in clips)
    return Manifest(tuple(renumbered), tuple(names[old] for old in used), False, "audioset")


def load_esc50(source: Path, problems: Problems) -> Manifest:
    """ESC-50's meta/esc50.csv; splits fold1, fold2, ...; labels are the categories present, in order of target."""
    path = source / "meta" / "esc50.csv"
    tree = Tree(source)
    rows, categories, targets, seen = [], dict[int, str](), dict[str, int](), set[str]()
    for number, row in csv_rows(path, ("filename", "fold", "target", "category"), problems):
        name = row["filename"]
        try:
            if not (row["fold"].isdecimal() and row["target"].isdecimal()):
                raise ValueError(f"fold {shorten(row['fold'])} or target {shorten(row['target'])} is not a number")
            target = int(row["target"])
            category = row["category"]
            if categories.setdefault(target, category) != category:
                raise ValueError(f"target {target} is {shorten(categories[target])} and {shorten(category)}")
            if targets.setdefault(category, target) != target:
                raise ValueError(f"the category {shorten(category)} is target {targets[category]} and {target}")
            require_printable("category", category)
            require_printable("file name", name)
            if name in seen or "/" in name:
                raise ValueError(f"the file name {shorten(name)} is listed twice or has a '/'")
            rows.append((name, tree.find(f"audio/{name}"), target, f"fold{int(row['fold'])}"))
        except ValueError as error:
            problems.add(path, number, str(error))
        seen.add(name)
    index = {target: number for number, target in enumerate(sorted(categories))}
    clips = tuple(Clip(name, file, (index[target],), split) for name, file, target, split in rows)
    return Manifest(clips, tuple(categories[target] for target in sorted(categories)), True, "esc50")


def load_speech_commands(source: Path, problems: Problems) -> Manifest:
    """Speech Commands: WORD/FILE; two lists name validation and test; `_background_noise_` is left out."""
    tree = Tree(source)
    listed: dict[str, str] = {}
    for split, path in (("validation", source / "validation_list.txt"), ("test", source / "testing_list.txt")):
        for number, text in lines_of(path, problems) if path.is_file() else ():
            name = text.strip()
            try:
                if name and (name in listed or name.count("/") != 1):
                    raise ValueError(f"expected WORD/FILE, listed once, and found {shorten(name)}")
                if name:
                    tree.find(name)
                    listed[name] = split
            except ValueError as error:
                problems.add(path, number, str(error))
    found = dict(_class_files(tree, tree.root, problems))
    splits = {name: listed.get(name, "train") for name in sorted({*found, *listed})}
    rows = [(name, name.split("/")[0], found.get(name, ""), split) for name, split in splits.items()]
    return _by_class(rows, "speech_commands")


def load_folders(source: Path, problems: Problems) -> Manifest:
    """CLASS/FILE, split by `hashed_split`; or SPLIT/CLASS/FILE where folders named as splits hold folders, no audio."""
    tree = Tree(source)
    top = tree.folders(tree.root)
    splits = [name for name in top if name.lower() in SPLIT_FOLDERS and _holds_classes(tree, name)]
    if not splits:
        files = _class_files(tree, tree.root, problems)
        return _by_class([(key, key.split("/")[0], path, hashed_split(key)) for key, path in files], "folders")
    for name in set(top) - set(splits):
        if any(tree.audio(os.path.join(tree.root, name), problems)):
            reason = f"not a split, beside {', '.join(splits)}; move it into one or away"
            problems.add(os.path.join(tree.root, name), None, reason)
    rows = [
        (f"{name}/{key}", key.split("/")[0], path, SPLIT_FOLDERS[name.lower()])
        for name in splits
        for key, path in _class_files(tree, os.path.join(tree.root, name), problems)
    ]
    return _by_class(rows, "folders")


def _holds_classes(tree: Tree, name: str) -> bool:
    folder = os.path.join(tree.root, name)
    return bool(tree.folders(folder)) and not any(is_audio(entry, kind) for entry, kind in tree.entries(folder).items())


def _class_files(tree: Tree, root: str, problems: Problems) -> Iterator[tuple[str, str]]:
    """CLASS/FILE below `root` and the absolute path, for every audio file of every class folder."""
    for name in tree.folders(root):
        for path in tree.audio(os.path.join(root, name), problems):
            key = os.path.relpath(path, root)
            try:
                require_printable("class", name)
                # Bytes that are no UTF-8 are told as escapes wherever a file is named: an old disk's names may be.
                require_printable("name", os.fsencode(key).decode("utf-8", "backslashreplace"))
                yield key, tree.find(path)
            except ValueError as error:
                problems.add(path, None, str(error))


def _by_class(rows: list[tuple[str, str, str, str]], layout: str) -> Manifest:
    """Manifest of (clip id, class, path, split) rows; labels sorted by name."""
    names = sorted({row[1] for row in rows})
    index = {name: (number,) for number, name in enumerate(names)}
    clips = tuple(Clip(key, path, index[name], split) for key, name, path, split in rows)
    return Manifest(clips, tuple(names), True, layout)
