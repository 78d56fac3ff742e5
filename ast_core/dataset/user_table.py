"""Reader of the user's own manifest: a CSV, JSON, JSON-lines or Parquet table of path, labels, clip_id and split."""

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
"""Characters; AudioSet's longest has 58."""
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def load_user_table(source: Path, problems: Problems) -> Manifest:
    """Clips of a table; paths are relative to its folder. Labels are sorted by name; a missing split is hashed.

    Raises:
        UserError: the file is not of its type.
    """
    tree = FileTree(source.parent)
    read = _Reader()
    rows: list[tuple[str, str, tuple[str, ...], str]] = []
    ids: set[str] = set()
    for number, row in _rows(source, problems):
        try:
            clip_id, given, names, split = read.cells(row)
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


class _Reader:
    """Cells of a row, checked. Labels and splits, which many rows share, are looked at once each."""

    def __init__(self) -> None:
        self._labels: dict[object, tuple[str, ...]] = {}
        self._splits: dict[str, str] = {}

    def cells(self, row: dict[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
        """Clip id, path, label names and split of one row; ValueError says what is wrong with it."""
        path = row["path"]
        if not isinstance(path, str):
            raise ValueError(f"path is {shorten(str(path))}; give a text")
        clip_id = _text("clip_id", row.get("clip_id")) or path
        require_printable("clip id", clip_id)
        if len(clip_id) > LONGEST_PATH:
            raise ValueError(f"the clip id {shorten(clip_id)} is longer than {LONGEST_PATH} characters")
        names = self._names(row["labels"])
        split = _text("split", row.get("split"))
        if not split:
            return clip_id, path, names, hashed_split(clip_id)
        if split not in self._splits and not _SPLIT.fullmatch(split):
            raise ValueError(f"the split {shorten(split)} is no name; use letters, digits, '_', '-' and '.'")
        return clip_id, path, names, self._splits.setdefault(split, split)

    def _names(self, given: Any) -> tuple[str, ...]:
        key = tuple(given) if isinstance(given, list) else given
        try:
            known = self._labels.get(key)
        except TypeError:  # an object or list among the labels, which `_label_names` refuses
            known = None
        if known is None:
            known = self._labels[key] = _label_names(given)
        return known


def _text(column: str, value: object) -> str:
    """A cell that may be left out; numbers are as good as their digits."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{column} is {shorten(str(value))}; give a text")


def _label_names(given: object) -> tuple[str, ...]:
    """Names of a cell, sorted: a text with ';' between several, or a list."""
    parts = given.split(";") if isinstance(given, str) else given if isinstance(given, list) else []
    names = sorted({_text("a label", part).strip() for part in parts} - {""})
    if not names:
        raise ValueError(f"labels is {shorten(str(given))}; give at least one label, with ';' between several")
    for name in names:
        require_printable("label", name)
        if len(name) > LONGEST_LABEL:
            raise ValueError(f"the label {shorten(name)} is longer than {LONGEST_LABEL} characters")
    return tuple(names)


def _rows(source: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number (a line's in text files, else counted from 1) and cells."""
    kind = source.suffix.lower()
    if kind == ".csv":
        yield from csv_rows(source, _COLUMNS, problems)
    elif kind == ".parquet":
        yield from _parquet_rows(source, problems)
    elif kind in {".json", ".jsonl"}:
        values = _json_lines(source, problems) if kind == ".jsonl" else enumerate(_json_list(source), 1)
        for number, value in values:
            if isinstance(value, dict) and all(name in value for name in _COLUMNS):
                yield number, value
            else:
                problems.add(source, number, f"expected an object with path and labels, found {shorten(str(value))}")
    else:
        raise UserError(f"{source} is no manifest: its name must end in {', '.join(MANIFEST_SUFFIXES)}.")


def _json_list(source: Path) -> list[Any]:
    try:
        value = json.loads(source.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON in UTF-8: {error}.") from error
    if not isinstance(value, list):
        raise UserError(f"{source} must be a JSON list of objects with path and labels.")
    return value


def _json_lines(source: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    for number, text in read_lines(source, problems):
        if text.strip():
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                problems.add(source, number, f"not JSON ({error})")


def _parquet_rows(source: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(source) as file:
            columns = file.schema_arrow.names
            for name in _COLUMNS:
                if columns.count(name) != 1:
                    raise UserError(f"{source} has {columns.count(name)} columns {name}; give one.")
            wanted = [name for name in (*_COLUMNS, "clip_id", "split") if name in columns]
            first = 1
            for batch in file.iter_batches(batch_size=10_000, columns=wanted):
                yield from _values(batch, first, source, problems)
                first += len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow's own, or texts that are not UTF-8
        raise UserError(f"{source} is not a readable Parquet file: {error}") from error


def _values(
    batch: pa.RecordBatch, first: int, source: Path, problems: Problems
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows of a batch; one whose texts are no UTF-8 is noted."""
    try:
        yield from enumerate(batch.to_pylist(), first)
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            problems.add(source, first, f"not UTF-8 (byte {error.start})")
            return
        for half, start in ((batch[: len(batch) // 2], 0), (batch[len(batch) // 2 :], len(batch) // 2)):
            yield from _values(half, first + start, source, problems)
