"""Read a folder with one sub-folder per class, with or without folders for the splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.file_tree import FileTree, is_audio
from ast_core.dataset.problems import Problems, require_printable

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


def hashed_split(key: str) -> str:
    """`train`, `validation` or `test` (80, 10, 10 in a hundred) by the SHA-256 of a clip's name: it never moves."""
    place = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") % 100
    return "train" if place < 80 else "validation" if place < 90 else "test"


def load_class_folders(source: Path, problems: Problems) -> Manifest:
    """CLASS/FILE, split by `hashed_split`; or SPLIT/CLASS/FILE where folders named as splits hold folders, no audio."""
    tree = FileTree(source)
    top = tree.folders(tree.root)
    splits = [name for name in top if name.lower() in SPLIT_FOLDERS and _holds_classes(tree, name)]
    if not splits:
        files = class_files(tree, tree.root, problems)
        return manifest_by_class([(key, key.split("/")[0], path, hashed_split(key)) for key, path in files], "folders")
    for name in set(top) - set(splits):
        if any(tree.audio(os.path.join(tree.root, name), problems)):
            reason = f"not a split, beside {', '.join(splits)}; move it into one or away"
            problems.add(os.path.join(tree.root, name), None, reason)
    rows = [
        (f"{name}/{key}", key.split("/")[0], path, SPLIT_FOLDERS[name.lower()])
        for name in splits
        for key, path in class_files(tree, os.path.join(tree.root, name), problems)
    ]
    return manifest_by_class(rows, "folders")


def _holds_classes(tree: FileTree, name: str) -> bool:
    folder = os.path.join(tree.root, name)
    return bool(tree.folders(folder)) and not any(is_audio(entry, kind) for entry, kind in tree.entries(folder).items())


def class_files(tree: FileTree, root: str, problems: Problems) -> Iterator[tuple[str, str]]:
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


def manifest_by_class(rows: list[tuple[str, str, str, str]], layout: str) -> Manifest:
    """Manifest of (clip id, class, path, split) rows; labels sorted by name."""
    names = sorted({row[1] for row in rows})
    index = {name: (number,) for number, name in enumerate(names)}
    clips = tuple(Clip(key, path, index[name], split) for key, name, path, split in rows)
    return Manifest(clips, tuple(names), True, layout)
