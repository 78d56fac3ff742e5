"""Reader of the user's own manifest: a CSV, JSON, JSON-lines or Parquet table of path, labels, clip_id and split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.errors import UserError
from ast_core.layouts import csv_rows, hashed_split
from ast_core.listing import Clip, Manifest, Problems, Tree, lines_of, shorten

MANIFEST_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
_COLUMNS = ("path", "labels")
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def load_table(source: Path, problems: Problems) -> Manifest:
    """Clips of a table; paths are relative to its folder. Labels are sorted by name; a missing split is hashed.

    Raises:
        UserError: the file is not of its type, or a column is missing.
    """
    tree = Tree(source.parent)
    label_sets: dict[tuple[str, ...], list[int]] = {}
    rows: list[tuple[str, str, tuple[str, ...], str]] = []
    ids: set[str] = set()
    for number, row in _rows(source, problems):
        try:
            clip_id, given, names, split = _cells(row)
            if clip_id in ids:
                raise ValueError(f"the clip {shorten(clip_id)} is listed twice")
            path = tree.find(given)
        except ValueError as error:
            problems.add(source, number, str(error))
            continue
        ids.add(clip_id)
        label_sets.setdefault(names, [])
        rows.append((clip_id, path, names, split))
    labels = sorted({name for names in label_sets for name in names})
    index = {name: number for number, name in enumerate(labels)}
    numbers = {names: tuple(sorted(index[name] for name in names)) for names in label_sets}
    clips = tuple(Clip(clip_id, path, numbers[names], split) for clip_id, path, names, split in rows)
    return Manifest(clips, tuple(labels), all(len(names) == 1 for names in label_sets), "manifest")


def _cells(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
    """Clip id, path, label names and split of one row; ValueError says what is wrong with it."""
    path = row["path"]
    if not isinstance(path, str):
        raise ValueError(f"path is {shorten(str(path))}; give a text")
    given = row["labels"]
    parts = given.split(";") if isinstance(given, str) else given if isinstance(given, list) else []
    names = tuple(sorted({str(part).strip() for part in parts if part is not None and str(part).strip()}))
    if not names:
        raise ValueError(f"labels is {shorten(str(given))}; give at least one label, with ';' between several")
    clip_id = str(path if row.get("clip_id") in (None, "") else row["clip_id"])
    if not clip_id.isprintable():
        raise ValueError(f"the clip id {shorten(clip_id)} has characters that cannot be printed")
    split = hashed_split(clip_id) if row.get("split") in (None, "") else str(row["split"])
    if not _SPLIT.fullmatch(split):
        raise ValueError(f"the split {shorten(split)} is no name; use letters, digits, '_', '-' and '.'")
    return clip_id, path, names, split


def _rows(source: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number (a line's in text files, else counted from 1) and cells."""
    kind = source.suffix.lower()
    if kind == ".csv":
        yield from csv_rows(source, _COLUMNS, problems)
    elif kind == ".parquet":
        yield from enumerate(_parquet_rows(source), 1)
    elif kind in (".json", ".jsonl"):
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
    for number, text in lines_of(source, problems):
        if text.strip():
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                problems.add(source, number, f"not JSON ({error})")


def _parquet_rows(source: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(source) as file:
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{source} has no column {', '.join(missing)}.")
            wanted = [name for name in (*_COLUMNS, "clip_id", "split") if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=10_000, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{source} is not a readable Parquet file: {error}") from error
