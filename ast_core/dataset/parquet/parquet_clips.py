"""Check the rows of Parquet files with recordings, and collect them as clips."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from ast_core.dataset.clips import Clip
from ast_core.dataset.loose.file_tree import LONGEST_PATH
from ast_core.dataset.loose.user_table import SPLIT_NAME, read_times
from ast_core.dataset.parquet.parquet_columns import FoundColumns
from ast_core.dataset.parquet.parquet_labels import RowLabels
from ast_core.dataset.parquet.parquet_rows import NOT_UTF8, RowBatch
from ast_core.dataset.problems import require_printable, shorten
from ast_core.dataset.source_files import SourceFile
from ast_core.dataset.split_names import find_audioset_split
from ast_core.dataset.stratified_split import read_group

Row = tuple[str, tuple[int, ...], str, float, float | None, str]
"""Id, labels, split, start, end and group of a row."""
_ALL = (0.0, None)
"""Start and end of a complete recording."""


class BatchReader:
    """Reader of the rows of one batch."""

    def __init__(self, batch: RowBatch, columns: FoundColumns, split: str, audioset: bool) -> None:
        self._columns = columns
        self._file_split = split
        self._audioset = audioset
        cells = batch.cells
        self._ids = cells.get(columns.clip_id or columns.stored_path)
        self._labels = cells[columns.label]
        self._human = cells.get(columns.human)
        self._splits = cells.get(columns.split)
        self._groups = cells.get(columns.group)
        self._times = {name: cells[name] for name in columns.times}

    def read(self, place: int, labels: RowLabels) -> Row:
        """Return the checked values of a row; ValueError says what is wrong with it."""
        human = self._human[place] if self._human else None
        numbers = labels.read(self._labels[place], self._columns.class_names, human)
        start_s, end_s = (
            read_times({name: cells[place] for name, cells in self._times.items()}) if self._times else _ALL
        )
        split = self._read_split(self._splits[place]) if self._splits else self._file_split
        group = read_group(_require_text(self._columns.group, self._groups[place])) if self._groups else ""
        return self._read_id(place), numbers, split, start_s, end_s, group

    def _read_id(self, place: int) -> str:
        """Return the id of a row; "" if the row has no id of its own and becomes FILE#ROW."""
        given = self._ids[place] if self._ids else None
        if given is None and not self._columns.clip_id:
            return ""
        given = _require_text("the clip id", given)
        if given is None or given == "":
            raise ValueError(f"{self._columns.clip_id or 'path'} is empty; give each recording an id")
        clip_id = given if isinstance(given, str) else str(given)
        if not clip_id.isprintable():
            require_printable("clip id", clip_id)
        if len(clip_id) > LONGEST_PATH:
            raise ValueError(f"the clip id {shorten(clip_id)} is longer than {LONGEST_PATH} characters")
        return clip_id

    def _read_split(self, given: object) -> str:
        """Return a split as text; that of integers is COLUMN and the number, unless the metadata names them."""
        given = _require_text("the split", given)
        if isinstance(given, int):
            names = self._columns.split_names
            if names is not None and not 0 <= given < len(names):
                raise ValueError(f"the split is {given}, but the metadata names the splits 0 to {len(names) - 1}")
            given = names[given] if names else f"{self._columns.split}{given}"
        text = str(given or "")
        if text and not SPLIT_NAME.fullmatch(text):
            raise ValueError(f"the split {shorten(text)} is not a valid name; use letters, digits, '_', '-' and '.'")
        return (find_audioset_split(text) or text) if self._audioset else sys.intern(text)


class RowClips:
    """All rows so far, in arrays: two million clips with their parts as Python objects would take twice the memory."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._labels: list[tuple[int, ...]] = []
        self._splits: list[str] = []
        self._times: dict[int, tuple[float, float | None]] = {}
        self._groups: dict[int, str] = {}
        self._files, self._row_groups, self._rows, self._numbers = (array("l") for _ in range(4))
        self._known: set[str] = set()
        self._repeated: set[str] = set()

    def add(self, file: int, row: Row, batch: RowBatch, place: int, own_id: bool) -> None:
        """Add a row.

        Args:
            file: number of its file.
            row: its values.
            batch: batch that it is in.
            place: its place in the batch.
            own_id: whether its id is that of a column of ids. Other names may repeat; such rows become FILE#ROW.

        Raises:
            ValueError: its id was there before.
        """
        clip_id, labels, split, start_s, end_s, group = row
        if clip_id in self._known:
            if own_id:
                raise ValueError(f"the clip {shorten(clip_id)} is listed twice")
            self._repeated.add(clip_id)
        elif clip_id:
            self._known.add(clip_id)
        number = len(self._ids)
        if start_s or end_s is not None:
            self._times[number] = start_s, end_s
        if group:
            self._groups[number] = group
        self._ids.append(clip_id)
        self._labels.append(labels)
        self._splits.append(split)
        self._files.append(file)
        self._row_groups.append(-1 if batch.missing[place] else batch.groups[place])
        self._rows.append(batch.rows[place])
        self._numbers.append(batch.first + place + 1)

    def clips(self, files: Sequence[SourceFile], final: dict[tuple[int, ...], tuple[int, ...]]) -> Iterator[Clip]:
        """Yield the clips of all rows, in order. No row can be added after that.

        Args:
            files: all files of the source.
            final: final labels by the labels of the rows.
        """
        self._known.clear()
        for number, clip_id in enumerate(self._ids):
            own = clip_id and clip_id not in self._repeated
            file, group, row = files[self._files[number]], self._row_groups[number], self._rows[number]
            start_s, end_s = self._times.get(number, _ALL)
            yield Clip(
                clip_id if own else f"{file.name}#{self._numbers[number]}",
                file.path if group >= 0 else "",
                final[self._labels[number]],
                self._splits[number],
                start_s,
                end_s,
                self._groups.get(number, ""),
                (group, row) if group >= 0 else None,
            )


def _require_text(what: str, given: Any) -> Any:
    """Return a cell; ValueError if its text is not UTF-8."""
    if given is NOT_UTF8:
        raise ValueError(f"{what} is not UTF-8; write the file again with texts in UTF-8")
    return given
