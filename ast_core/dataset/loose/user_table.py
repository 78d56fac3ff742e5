"""Read the user's own manifest: a CSV, JSON, JSON-lines or Parquet table of path, labels, clip_id, split and times."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.dataset.clips import Clip, Manifest, UnlistedFiles
from ast_core.dataset.loose.csv_rows import csv_rows
from ast_core.dataset.loose.file_tree import LONGEST_PATH, FileTree
from ast_core.dataset.loose.label_cells import read_text, split_labels
from ast_core.dataset.problems import Problems, UnlistedCounts, read_lines, require_printable, shorten
from ast_core.dataset.stratified_split import read_group
from ast_core.errors import UserError

MANIFEST_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
_COLUMNS = ("path", "labels")
_OPTIONAL_COLUMNS = ("clip_id", "split", "start_s", "end_s")
MOST_COLUMNS = 10
"""Largest number of unread columns that a note names."""
_TIMES = frozenset({"start_s", "end_s"})
_LONGEST_S = 1e7
"""Times in a recording are shorter, in seconds; 10,000,000 s are 116 days."""
SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""Valid name of a split."""


class _Row(NamedTuple):
    """The checked cells of a row."""

    clip_id: str
    path: str
    names: tuple[str, ...]
    split: str
    start_s: float
    end_s: float | None


def load_user_table(source: Path, tree: FileTree, problems: Problems, group: str = "") -> Manifest:
    """Read a table's clips.

    Paths are relative to the table's folder or to a further root. Labels are sorted by name; those of AST's JSON lists
    have the order of class_labels_indices.csv. Rows without a split have none yet, and `group` may be a column.

    Raises:
        UserError: the file's content does not fit its suffix, or no row has a label.
    """
    displayed = _read_display_names(source, problems)
    reader = _RowReader(frozenset(displayed.values()))
    rows: list[_Row] = []
    ids: set[str] = set()
    groups: dict[str, str] = {}
    first, is_ast_list, columns = 0, False, tuple[str, ...]()
    for number, cells in _read_rows(source, displayed, problems, group):
        columns = columns or tuple(cells)
        first, is_ast_list = first or number, is_ast_list or "wav" in cells
        try:
            row = reader.read_cells(cells)
            if group:
                groups[row.clip_id] = read_group(cells.get(group))
            if row.clip_id in ids:
                raise ValueError(f"the clip {shorten(row.clip_id)} is listed twice")
            path = tree.find(row.path)
        except ValueError as error:
            problems.add(source, number, str(error))
            continue
        ids.add(row.clip_id)
        rows.append(row._replace(path=path))
    label_sets = {row.names for row in rows}
    labels = sorted({name for names in label_sets for name in names})
    if displayed and is_ast_list:
        order = {name: place for place, name in enumerate(displayed.values())}
        labels.sort(key=lambda name: order.get(name, len(order)))
    if rows and not labels:
        problems.add(source, first, "no row has a label; give at least one row a label")
    index = {name: number for number, name in enumerate(labels)}
    numbers = {names: tuple(sorted(index[name] for name in names)) for names in label_sets}
    clips = tuple(
        Clip(r.clip_id, r.path, numbers[r.names], r.split, r.start_s, r.end_s, groups.get(r.clip_id, "")) for r in rows
    )
    single_label = all(len(names) == 1 for names in label_sets)
    notes = note_unread_columns(_find_unread_columns(source, columns, group))
    return Manifest(clips, tuple(labels), single_label, "manifest", _count_unlisted(source, tree), notes=notes)


def _find_unread_columns(source: Path, columns: Sequence[str], group: str) -> list[str]:
    """Return the columns (of JSON, those of the first row) that mean nothing here."""
    if columns and source.suffix.lower() == ".parquet":
        columns = pq.read_schema(source).names
    return [name for name in columns if name not in {*_COLUMNS, *_OPTIONAL_COLUMNS, "wav", group}]


def note_unread_columns(unread: Sequence[str]) -> tuple[str, ...]:
    """Return a note that names columns that mean nothing here; nothing without such columns."""
    if not unread:
        return ()
    names = [shorten(name) for name in unread]
    more = f" and {len(names) - MOST_COLUMNS} more" if len(names) > MOST_COLUMNS else ""
    return (f"columns that are not read: {', '.join(names[:MOST_COLUMNS])}{more}",)


def _count_unlisted(source: Path, tree: FileTree) -> tuple[UnlistedFiles, ...]:
    """Count the files that no row names, in the folders in which rows name files: the others may be anything."""
    counts = UnlistedCounts(tree.root)
    for folder in tree.used_folders():
        tree.count_unlisted_in(folder, counts, {os.path.realpath(source)}, "audio, but named by no row of the list")
    return counts.counts()


class _RowReader:
    """Check of a row's cells. Many rows share labels and splits, so each of these is checked once.

    Args:
        known: names that may have commas.
    """

    def __init__(self, known: frozenset[str]) -> None:
        self._known = known
        self._labels: dict[object, tuple[str, ...]] = {}
        self._splits: dict[str, str] = {}

    def read_cells(self, row: dict[str, Any]) -> _Row:
        """Return one row; ValueError says what is wrong with it."""
        path = row["path"]
        if not isinstance(path, str):
            raise ValueError(f"path is {shorten(str(path))}; give a text")
        start_s, end_s = (0.0, None) if _TIMES.isdisjoint(row) else read_times(row)
        clip_id = read_text("clip_id", row.get("clip_id")) or path + _time_suffix(start_s, end_s)
        require_printable("clip id", clip_id)
        if len(clip_id) > LONGEST_PATH:
            raise ValueError(f"the clip id {shorten(clip_id)} is longer than {LONGEST_PATH} characters")
        names = self._read_labels(row["labels"])
        split = read_text("split", row.get("split"))
        if split and split not in self._splits and not SPLIT_NAME.fullmatch(split):
            raise ValueError(f"the split {shorten(split)} is not a valid name; use letters, digits, '_', '-' and '.'")
        return _Row(clip_id, path, names, self._splits.setdefault(split, split), start_s, end_s)

    def _read_labels(self, given: Any) -> tuple[str, ...]:
        key = tuple(given) if isinstance(given, list) else given
        try:
            known = self._labels.get(key)
        except TypeError:  # a label is an object or list, which `split_labels` refuses
            known = None
        if known is None:
            known = self._labels[key] = split_labels(given, self._known)
        return known


def read_times(row: dict[str, Any]) -> tuple[float, float | None]:
    """Return start and end of a row in seconds; empty cells are the beginning and the end of the recording."""
    start_s, end_s = (_read_seconds(column, row.get(column)) for column in ("start_s", "end_s"))
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ValueError(f"end_s is {end_s:g}, not after start_s, {start_s or 0:g}")
    return start_s or 0.0, end_s


def _read_seconds(column: str, value: object) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < _LONGEST_S:
        raise ValueError(f"{column} is {shorten(str(value))}; give seconds, 0 or more")
    return seconds


def _time_suffix(start_s: float, end_s: float | None) -> str:
    """Return the part of a clip id that tells the segments of one recording apart; "" for a complete recording."""
    if not start_s and end_s is None:
        return ""
    return f"#{start_s:.12g}-" + ("" if end_s is None else f"{end_s:.12g}")


def _read_display_names(source: Path, problems: Problems) -> dict[str, str]:
    """Return the names of class_labels_indices.csv next to a manifest by their machine ids; none without that file."""
    path = source.parent / "class_labels_indices.csv"
    if not path.is_file():
        return {}
    return {row["mid"]: row["display_name"] for _, row in csv_rows(path, ("mid", "display_name"), problems)}


def _read_rows(
    source: Path, displayed: dict[str, str], problems: Problems, group: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row's number (the line in text files, else counted from 1) and its cells."""
    kind = source.suffix.lower()
    if kind == ".csv":
        yield from csv_rows(source, _COLUMNS, problems)
    elif kind == ".parquet":
        yield from _read_parquet_rows(source, problems, group)
    elif kind in {".json", ".jsonl"}:
        values = _read_json_lines(source, problems) if kind == ".jsonl" else enumerate(_read_json_list(source), 1)
        for number, value in values:
            try:
                row = _convert_ast_row(value, displayed)
                if not (isinstance(row, dict) and all(name in row for name in _COLUMNS)):
                    raise ValueError(f"expected an object with path and labels, but found {shorten(str(value))}")
            except ValueError as error:
                problems.add(source, number, str(error))
                continue
            yield number, row
    else:
        raise UserError(f"{source} is not a manifest; give a file whose name ends in {', '.join(MANIFEST_SUFFIXES)}.")


def _read_json_list(source: Path) -> list[Any]:
    """Return the rows of a JSON list, or of AST's own JSON lists: `{"data": [{"wav": path, "labels": "mid,mid"}]}`."""
    try:
        value = json.loads(source.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON in UTF-8: {error}. Save it as UTF-8.") from error
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise UserError(
            f"{source} is not a JSON list; give a list of objects with path and labels, or AST's own "
            '{"data": [{"wav": ..., "labels": ...}]}.'
        )
    return value


def _convert_ast_row(row: Any, displayed: dict[str, str]) -> Any:
    """Return a row of AST's JSON lists as a row of ours, and any other row as it is.

    Its labels are machine ids with ',' between them. With a class_labels_indices.csv they become its names.

    Raises:
        ValueError: that file does not have a machine id.
    """
    if not (isinstance(row, dict) and "wav" in row and "path" not in row and isinstance(row.get("labels"), str)):
        return row
    mids = [mid.strip() for mid in row["labels"].split(",") if mid.strip()]
    unknown = [mid for mid in mids if mid not in displayed] if displayed else []
    if unknown:
        raise ValueError(f"the labels {shorten(', '.join(unknown))} are not in class_labels_indices.csv")
    return {**row, "path": row["wav"], "labels": [displayed.get(mid, mid) for mid in mids]}


def _read_json_lines(source: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    for number, text in read_lines(source, problems):
        if text.strip():
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                problems.add(source, number, f"the line is not JSON ({error})")


def _read_parquet_rows(source: Path, problems: Problems, group: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(source) as file:
            columns = file.schema_arrow.names
            for name in _COLUMNS:
                if columns.count(name) != 1:
                    raise UserError(f"{source} has {columns.count(name)} columns named {name}; give exactly one.")
            known = (*_COLUMNS, *_OPTIONAL_COLUMNS, group)
            wanted = [name for name in dict.fromkeys(known) if name in columns]
            first = 1
            for batch in file.iter_batches(batch_size=10_000, columns=wanted):
                yield from _number_rows(batch, first, source, problems)
                first += len(batch)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
    ) as error:  # the first is pyarrow's; texts that are not UTF-8 raise ValueError
        raise UserError(f"{source} is not a readable Parquet file: {error}. Write it again.") from error


def _number_rows(
    batch: pa.RecordBatch, first: int, source: Path, problems: Problems
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbered rows of a batch; a row with texts that are not UTF-8 is added to `problems`."""
    try:
        yield from enumerate(batch.to_pylist(), first)
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            problems.add(source, first, f"the row is not UTF-8 (byte {error.start})")
            return
        for half, start in ((batch[: len(batch) // 2], 0), (batch[len(batch) // 2 :], len(batch) // 2)):
            yield from _number_rows(half, first + start, source, problems)
