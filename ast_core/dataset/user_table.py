"""Read the user's own manifest: a CSV, JSON, JSON-lines or Parquet table of path, labels, clip_id and split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.dataset.class_folders import hashed_split
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.csv_rows import csv_rows
from ast_core.dataset.file_tree import LONGEST_PATH, FileTree
from ast_core.dataset.problems import Problems, read_lines, require_printable, shorten
from ast_core.errors import UserError

MANIFEST_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
_COLUMNS = ("path", "labels")
LONGEST_LABEL = 500
"""Largest number of characters in a label; AudioSet's longest has 58."""
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def load_user_table(source: Path, tree: FileTree, problems: Problems) -> Manifest:
    """Read a table's clips.

    Paths are relative to the table's folder, labels are sorted by name. `hashed_split` places rows without a split.

    Raises:
        UserError: the file's content does not fit its suffix.
    """
    reader = _RowReader()
    rows: list[tuple[str, str, tuple[str, ...], str]] = []
    ids: set[str] = set()
    for number, row in _read_rows(source, problems):
        try:
            clip_id, given, names, split = reader.read_cells(row)
            if clip_id in ids:
                raise ValueError(f"the clip {shorten(clip_id)} is listed twice")
            path = tree.find(given)
        except ValueError as error:
            problems.add(source, number, str(error))
            continue
        ids.add(clip_id)
        rows.append((clip_id, path, names, split))
    label_sets = {names for _, _, names, _ in rows}
    labels = sorted({name for names in label_sets for name in names})
    index = {name: number for number, name in enumerate(labels)}
    numbers = {names: tuple(sorted(index[name] for name in names)) for names in label_sets}
    clips = tuple(Clip(clip_id, path, numbers[names], split) for clip_id, path, names, split in rows)
    return Manifest(clips, tuple(labels), all(len(names) == 1 for names in label_sets), "manifest")


class _RowReader:
    """Check of a row's cells. Many rows share labels and splits, so each of these is checked once."""

    def __init__(self) -> None:
        self._labels: dict[object, tuple[str, ...]] = {}
        self._splits: dict[str, str] = {}

    def read_cells(self, row: dict[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
        """Return clip id, path, label names and split of one row; ValueError says what is wrong with it."""
        path = row["path"]
        if not isinstance(path, str):
            raise ValueError(f"path is {shorten(str(path))}; give a text")
        clip_id = _read_text("clip_id", row.get("clip_id")) or path
        require_printable("clip id", clip_id)
        if len(clip_id) > LONGEST_PATH:
            raise ValueError(f"the clip id {shorten(clip_id)} is longer than {LONGEST_PATH} characters")
        names = self._read_labels(row["labels"])
        split = _read_text("split", row.get("split"))
        if not split:
            return clip_id, path, names, hashed_split(clip_id)
        if split not in self._splits and not _SPLIT.fullmatch(split):
            raise ValueError(f"the split {shorten(split)} is not a valid name; use letters, digits, '_', '-' and '.'")
        return clip_id, path, names, self._splits.setdefault(split, split)

    def _read_labels(self, given: Any) -> tuple[str, ...]:
        key = tuple(given) if isinstance(given, list) else given
        try:
            known = self._labels.get(key)
        except TypeError:  # a label is an object or list, which `_split_labels` refuses
            known = None
        if known is None:
            known = self._labels[key] = _split_labels(given)
        return known


def _read_text(column: str, value: object) -> str:
    """Return an optional cell as text; a whole number becomes its digits."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{column} is {shorten(str(value))}; give a text")


def _split_labels(given: object) -> tuple[str, ...]:
    """Return the sorted label names of a cell: a list, or a text with ';' between several names."""
    parts = given.split(";") if isinstance(given, str) else given if isinstance(given, list) else []
    names = sorted({_read_text("a label", part).strip() for part in parts} - {""})
    if not names:
        raise ValueError(f"labels is {shorten(str(given))}; give at least one label, with ';' between several")
    for name in names:
        require_printable("label", name)
        if len(name) > LONGEST_LABEL:
            raise ValueError(f"the label {shorten(name)} is longer than {LONGEST_LABEL} characters")
    return tuple(names)


def _read_rows(source: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row's number (the line in text files, else counted from 1) and its cells."""
    kind = source.suffix.lower()
    if kind == ".csv":
        yield from csv_rows(source, _COLUMNS, problems)
    elif kind == ".parquet":
        yield from _read_parquet_rows(source, problems)
    elif kind in {".json", ".jsonl"}:
        values = _read_json_lines(source, problems) if kind == ".jsonl" else enumerate(_read_json_list(source), 1)
        for number, value in values:
            if isinstance(value, dict) and all(name in value for name in _COLUMNS):
                yield number, value
            else:
                problems.add(
                    source, number, f"expected an object with path and labels, but found {shorten(str(value))}"
                )
    else:
        raise UserError(f"{source} is not a manifest; give a file whose name ends in {', '.join(MANIFEST_SUFFIXES)}.")


def _read_json_list(source: Path) -> list[Any]:
    try:
        value = json.loads(source.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON in UTF-8: {error}. Save it as UTF-8.") from error
    if not isinstance(value, list):
        raise UserError(f"{source} is not a JSON list; give a list of objects with path and labels.")
    return value


def _read_json_lines(source: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    for number, text in read_lines(source, problems):
        if text.strip():
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                problems.add(source, number, f"the line is not JSON ({error})")


def _read_parquet_rows(source: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(source) as file:
            columns = file.schema_arrow.names
            for name in _COLUMNS:
                if columns.count(name) != 1:
                    raise UserError(f"{source} has {columns.count(name)} columns named {name}; give exactly one.")
            wanted = [name for name in (*_COLUMNS, "clip_id", "split") if name in columns]
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
