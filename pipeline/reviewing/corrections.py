"""Read the user's corrections of labels from a CSV file, and check every row.

Its columns are `clip_id`, and `corrected_labels` or `leave_out` or both.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.loose.csv_rows import csv_rows
from ast_core.dataset.loose.label_cells import split_labels
from ast_core.dataset.problems import Problems, shorten
from ast_core.errors import require
from ast_core.evaluation.prediction_table import to_text
from pipeline.reviewing.review_table import CORRECTED, ID, LABELS, LEFT_OUT

_YES, _NO = {"yes", "y", "true", "1", "x"}, {"", "no", "n", "false", "0"}


@dataclass
class Corrections:
    """What a file of corrections says, with counts that balance: rows = relabelled + left out + same + empty."""

    rows: int = 0
    relabelled: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """New labels of clips, by id."""
    left_out: set[str] = field(default_factory=set)
    """Ids of clips to leave out."""
    same: int = 0
    """Rows whose corrected labels are those that the clip has."""
    empty: int = 0
    """Rows without a correction: the user found the labels right, or did not look at them."""

    @property
    def balances(self) -> bool:
        """Whether each row has exactly one outcome."""
        return self.rows == len(self.relabelled) + len(self.left_out) + self.same + self.empty


def read_corrections(path: Path, manifest: Manifest) -> Corrections:
    """Read a file of corrections, and check every row against the data set.

    Columns besides `clip_id`, `corrected_labels`, `leave_out` and `labels` are not read. If `labels` is there, it must
    be the labels that the clip has, so that corrections are not applied to a data set that has changed since.

    Raises:
        UserError: the file is missing or has no such columns, or rows are bad: an unknown clip or label, a clip that is
            listed twice, a number of labels that the data set does not allow. The first 20 are shown.
    """
    require(path.is_file(), f"The corrections {path} do not exist; give the CSV file that you filled in.")
    reader = _RowReader(manifest)
    problems, found, read = Problems(), Corrections(), set[str]()
    for number, row in csv_rows(path, (ID,), problems):
        if not {CORRECTED, LEFT_OUT} & set(row):
            problems.add(path, 1, f"the first row has neither the column {CORRECTED} nor {LEFT_OUT}")
            break
        found.rows += 1
        try:
            clip = reader.find_clip(row[ID])
            if row[ID] in read:
                raise ValueError(f"the clip {shorten(row[ID])} is listed twice")
            read.add(row[ID])
            reader.check_labels(row, clip)
            leave, labels = _read_leave_out(row.get(LEFT_OUT, "")), reader.read_labels(row.get(CORRECTED, ""))
            if leave and labels is not None:
                raise ValueError(
                    f"{CORRECTED} is {shorten(row[CORRECTED])}, and {LEFT_OUT} is yes; give only one of them"
                )
        except ValueError as error:
            problems.add(path, number, str(error))
            continue
        if leave:
            found.left_out.add(row[ID])
        elif labels is None:
            found.empty += 1
        elif labels == clip.labels:
            found.same += 1
        else:
            found.relabelled[row[ID]] = labels
    problems.check("problem(s) in the corrections; fix them and run again:")
    require(found.balances, f"The counts of {path} do not balance: {found}.")
    return found


def _read_leave_out(cell: str) -> bool:
    text = cell.strip().lower()
    if text not in _YES | _NO:
        raise ValueError(f"{LEFT_OUT} is {shorten(cell)}; give yes, or leave the cell empty")
    return text in _YES


class _RowReader:
    """Check of rows against the clips and classes of a data set.

    Args:
        manifest: the data set.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._clips = {to_text(clip.clip_id): clip for clip in manifest.clips}
        self._classes = {name: number for number, name in enumerate(manifest.labels)}

    def find_clip(self, clip_id: str) -> Clip:
        """Return a clip by its id; ValueError if the data set does not have it."""
        clip = self._clips.get(clip_id)
        if clip is None:
            raise ValueError(
                f"the clip {shorten(clip_id)} is not in the data set, which has ids such as {self._example}"
            )
        return clip

    def check_labels(self, row: dict[str, str], clip: Clip) -> None:
        """Raise ValueError if a row says that its clip has other labels than it has now."""
        if LABELS not in row:
            return
        names = split_labels(row[LABELS], self._classes)
        own = tuple(sorted(self._manifest.labels[label] for label in clip.labels))
        if names != own:
            raise ValueError(
                f"labels is {shorten(row[LABELS])}, but the clip {shorten(row[ID])} has {shorten(';'.join(own))}: the "
                "row was made for other data. Run report --review again, or remove the column labels"
            )

    def read_labels(self, cell: str) -> tuple[int, ...] | None:
        """Return corrected labels, ascending; None for an empty cell; `;` alone is no label."""
        if not cell.strip():
            return None
        names = split_labels(cell, self._classes)
        for name in names:
            if name not in self._classes:
                raise ValueError(f"the label {shorten(name)} is not a class of the data set{self._suggest(name)}")
        if self._manifest.single_label and len(names) != 1:
            raise ValueError(
                f"{CORRECTED} is {shorten(cell)}, {len(names)} labels, but each clip of the data set has one; give one "
                f"label, or yes in {LEFT_OUT}"
            )
        return tuple(sorted(self._classes[name] for name in names))

    @property
    def _example(self) -> str:
        return shorten(next(iter(self._clips), ""))

    def _suggest(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._classes, n=1)
        if near:
            return f"; did you mean {shorten(near[0])}?"
        return f", whose classes are {shorten('; '.join(self._classes), 300)}"
