"""Count the clips of each class in each split, as a table and as warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from ast_core.config import DataConfig
from ast_core.dataset.problems import shorten

MOST_CLASSES = 60
"""Largest number of classes that the table on the screen shows."""
MOST_NAMES = 10
"""Largest number of classes that a warning names."""

Counts = Mapping[str, Sequence[int]]
"""Number of clips of each label, by split."""


def order_splits(counts: Counts, data: DataConfig) -> dict[str, Sequence[int]]:
    """Return the counts in the order training, validation, test, other splits."""
    known = [*data.train_splits, data.validation_split, data.test_split]
    return {split: counts[split] for split in dict.fromkeys([*known, *counts]) if split in counts}


def class_rows(labels: Sequence[str], counts: Counts) -> list[tuple[str, list[int]]]:
    """Return each class and its clips in each split, in the order of the labels."""
    return [(label, [own[number] for own in counts.values()]) for number, label in enumerate(labels)]


def classes_table(labels: Sequence[str], counts: Counts) -> Table:
    """Return a table of the clips of each class and split; of many classes, those with the fewest clips."""
    rows = class_rows(labels, counts)
    title = "clips of each class and split"
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: sum(row[1]))[:MOST_CLASSES]
        title += f", the {MOST_CLASSES} classes of {len(labels)} with the fewest clips"
    table = Table(title=title)
    for column in ("class", *counts, "all"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, own in rows:
        table.add_row(label.replace("[", "\\["), *(str(count) for count in own), str(sum(own)))
    return table


def warn_of_empty_classes(labels: Sequence[str], counts: Counts, data: DataConfig) -> list[str]:
    """Return a sentence for each use of the data (training, validation, test) for which classes have no clip."""
    uses = {
        "training": (data.train_splits, "the model cannot learn them"),
        "validation": ((data.validation_split,), "thresholds and the choice of the epoch ignore them"),
        "test": ((data.test_split,), "the results say nothing about them, and register promotes no champion"),
    }
    warnings = []
    for use, (splits, effect) in uses.items():
        own = [counts[split] for split in splits if split in counts]
        empty = [label for number, label in enumerate(labels) if own and not any(split[number] for split in own)]
        if empty:
            warnings.append(f"{_name_classes(empty, len(labels))} without {use} clips: {effect}.")
    return warnings


def _name_classes(names: Sequence[str], of: int) -> str:
    shown = ", ".join(shorten(name) for name in names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{len(names)} of {of} classes ({shown}{more}) are"
