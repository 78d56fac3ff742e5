"""Read ESC-50's layout."""

from __future__ import annotations

from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.loose.csv_rows import csv_rows
from ast_core.dataset.loose.file_tree import FileTree
from ast_core.dataset.problems import Problems, UnlistedCounts, require_printable, shorten


def load_esc50(source: Path, tree: FileTree, problems: Problems) -> Manifest:
    """Read meta/esc50.csv; the splits are fold1, fold2, ..., the labels are its categories in order of target."""
    path = source / "meta" / "esc50.csv"
    rows, categories, targets, seen = [], dict[int, str](), dict[str, int](), set[str]()
    for number, row in csv_rows(path, ("filename", "fold", "target", "category"), problems):
        name = row["filename"]
        try:
            if not (row["fold"].isdecimal() and row["target"].isdecimal()):
                raise ValueError(f"fold {shorten(row['fold'])} or target {shorten(row['target'])} is not a number")
            target = int(row["target"])
            category = row["category"]
            if categories.setdefault(target, category) != category:
                raise ValueError(
                    f"the target {target} has two categories, {shorten(categories[target])} and {shorten(category)}"
                )
            if targets.setdefault(category, target) != target:
                raise ValueError(f"the category {shorten(category)} has two targets, {targets[category]} and {target}")
            require_printable("category", category)
            require_printable("file name", name)
            if name in seen or "/" in name:
                raise ValueError(f"the file name {shorten(name)} is listed twice or has a '/'")
            rows.append((name, tree.find(f"audio/{name}") or tree.find(name), target, f"fold{int(row['fold'])}"))
        except ValueError as error:
            problems.add(path, number, str(error))
        seen.add(name)
    index = {target: number for number, target in enumerate(sorted(categories))}
    clips = tuple(Clip(name, file, (index[target],), split) for name, file, target, split in rows)
    labels = tuple(categories[target] for target in sorted(categories))
    counts = UnlistedCounts(tree.root)
    tree.count_unlisted(counts, [path], "audio, but named by no row of the list", [tree.root])
    return Manifest(clips, labels, True, "esc50", unlisted=counts.counts())
