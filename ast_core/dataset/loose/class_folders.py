"""Read a folder with one sub-folder per class, with or without folders for the splits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest, UnlistedFiles
from ast_core.dataset.loose.file_tree import FileTree, is_audio
from ast_core.dataset.problems import EXAMPLES, Problems, UnlistedCounts, make_printable, require_printable

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Folder names that mean a split, and the split."""


def load_class_folders(_: Path, tree: FileTree, problems: Problems) -> Manifest:
    """Read SPLIT/CLASS/FILE or CLASS/FILE.

    A folder with the name of a split is a split if it holds folders and no audio files. Without such a folder, each
    top folder is a class, and the clips have no split yet.
    """
    top = tree.folders(tree.root)
    splits = [name for name in top if name.lower() in SPLIT_FOLDERS and _holds_classes(tree, name)]
    if not splits:
        files = class_files(tree, tree.root, problems)
        rows = [(key, key.split("/")[0], path, "") for key, path in files]
        manifest = manifest_by_class(rows, "folders", count_outside_classes(tree))
        return replace(manifest, notes=_note_repeated_folders(row[0] for row in rows))
    for name in set(top) - set(splits):
        if any(tree.audio(os.path.join(tree.root, name), problems)):
            problems.add(os.path.join(tree.root, name), None, _explain_no_split(name, splits))
    rows = [
        (f"{name}/{key}", key.split("/")[0], path, SPLIT_FOLDERS[name.lower()])
        for name in splits
        for key, path in class_files(tree, os.path.join(tree.root, name), problems)
    ]
    return manifest_by_class(rows, "folders", count_outside_classes(tree))


def _note_repeated_folders(keys: Iterable[str]) -> tuple[str, ...]:
    """Return a note if all audio of every class is in folders and the classes share two of these folders' names.

    These may be the classes or the splits, which are elsewhere in this layout.
    """
    inner: dict[str, set[str]] = {}
    for key in keys:
        top, below, *rest = key.split("/", 2)
        inner.setdefault(top, set()).add(below if rest else "")
    common = set.intersection(*inner.values()) if len(inner) > 1 else set()
    if len(common) < 2 or any("" in names for names in inner.values()):
        return ()
    shown = ", ".join(make_printable(name) for name in sorted(common)[:EXAMPLES])
    note = (
        f"{len(inner)} folders, such as {make_printable(min(inner))}, are read as the classes, and each has the "
        f"folders {shown}. If those are the classes or the splits, arrange the files as SPLIT/CLASS/FILE with the "
        "splits train, validation, test."
    )
    return (note,)


def _explain_no_split(name: str, splits: Sequence[str]) -> str:
    """Return why a top folder with audio is not read although others are splits."""
    others = f"this folder is not a split, but {', '.join(splits)} {'is' if len(splits) == 1 else 'are'}"
    if name.lower() in SPLIT_FOLDERS:
        return f"{others}: a split has folders for its classes and no audio files next to them; move those into classes"
    return f"{others}; move it into one of them or elsewhere (names of splits are {', '.join(SPLIT_FOLDERS)})"


def _holds_classes(tree: FileTree, name: str) -> bool:
    """Return whether a top folder holds folders and no audio files."""
    folder = os.path.join(tree.root, name)
    return bool(tree.folders(folder)) and not any(is_audio(entry, kind) for entry, kind in tree.entries(folder).items())


def class_files(tree: FileTree, root: str, problems: Problems) -> Iterator[tuple[str, str]]:
    """Yield CLASS/FILE below `root` and the absolute path of every audio file in every class folder."""
    classes = tree.folders(root)
    for name in classes:
        for path in tree.audio(os.path.join(root, name), problems):
            if tree.is_alias(path, root, {*classes} - {name}):
                continue
            key = os.path.relpath(path, root)
            try:
                require_printable("class", name)
                # File names on old disks may not be UTF-8. All outputs show such bytes as escapes: check that form.
                require_printable("name", os.fsencode(key).decode("utf-8", "backslashreplace"))
                yield key, tree.find(path)
            except ValueError as error:
                problems.add(path, None, str(error))


def count_outside_classes(tree: FileTree, lists: Sequence[Path] = ()) -> tuple[UnlistedFiles, ...]:
    """Return the counts of the files of a tree of class folders that are no clips and not in `lists`."""
    counts = UnlistedCounts(tree.root)
    tree.count_unlisted(counts, lists, "audio, but in no class folder", [tree.root])
    return counts.counts()


def manifest_by_class(
    rows: list[tuple[str, str, str, str]], layout: str, unlisted: tuple[UnlistedFiles, ...]
) -> Manifest:
    """Build the manifest of (clip id, class, path, split) rows; labels are sorted by name."""
    names = sorted({row[1] for row in rows})
    index = {name: (number,) for number, name in enumerate(names)}
    clips = tuple(Clip(key, path, index[name], split) for key, name, path, split in rows)
    return Manifest(clips, tuple(names), True, layout, unlisted=unlisted)
