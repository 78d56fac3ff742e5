"""Read Speech Commands' layout."""

from __future__ import annotations

from pathlib import Path

from ast_core.dataset.clips import Manifest
from ast_core.dataset.loose.class_folders import class_files, count_outside_classes, manifest_by_class
from ast_core.dataset.loose.file_tree import FileTree
from ast_core.dataset.problems import Problems, read_lines, shorten


def load_speech_commands(source: Path, tree: FileTree, problems: Problems) -> Manifest:
    """Read WORD/FILE; two lists name the validation and test files; `_background_noise_` is skipped and counted."""
    listed: dict[str, str] = {}
    lists = {"validation": source / "validation_list.txt", "test": source / "testing_list.txt"}
    for split, path in lists.items():
        for number, text in read_lines(path, problems) if path.is_file() else ():
            name = text.strip()
            try:
                if name and (name in listed or name.count("/") != 1):
                    raise ValueError(f"expected WORD/FILE, listed once, but found {shorten(name)}")
                if name:
                    tree.find(name)
                    listed[name] = split
            except ValueError as error:
                problems.add(path, number, str(error))
    found = dict(class_files(tree, tree.root, problems))
    splits = {name: listed.get(name, "train") for name in sorted({*found, *listed})}
    rows = [(name, name.split("/")[0], found.get(name, ""), split) for name, split in splits.items()]
    return manifest_by_class(rows, "speech_commands", count_outside_classes(tree, list(lists.values())))
