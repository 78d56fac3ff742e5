"""The one schema of predictions: whole recordings or windows of them, as Parquet, wide CSV or JSON.

No class name can replace a column. Parquet and JSON keep the probabilities in a column of their own; wide CSV has one
column per class, whose name begins with `p:`, and no other column begins so.

| column | type | value |
|---|---|---|
| `path` | string | path of the recording; bytes that are not UTF-8 are shown as escapes |
| `start_s`, `end_s` | float64 | part of the recording, in seconds from its start; null if refused |
| `error` | string | why the recording could not be used, else "" |
| `labels` | list of string | classes decided on, or the most probable ones, the most probable first; null if refused |
| `probabilities` | float32 [C] | probability of each class; C nulls if refused |

The metadata of the schema holds the class names in the order of `probabilities`, as a JSON list under the key
`classes`. A refused recording has C nulls and not one null, because Arrow does not read null fixed-size lists from
Parquet.

In CSV, `labels` is a JSON list, because a name may contain any separator. In JSON, `probabilities` is an object by
class, and null if refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ast_core.storage.atomic_files import atomic_write

PATH, START, END, ERROR = "path", "start_s", "end_s", "error"
"""Columns that say which recording, which part of it, and why it could not be used."""
LABELS, PROBABILITIES = "labels", "probabilities"
"""Columns with the classes that were chosen, and with the probabilities of all classes."""
CLASSES = b"classes"
"""Key of the schema's metadata that holds the class names, a JSON list."""
CLASS_PREFIX = "p:"
"""Prefix of the class columns in wide CSV."""
SUFFIXES = (".csv", ".json", ".parquet")
"""Suffixes of the files that `write_predictions` writes."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet may run as a formula."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for a recording or a window of it; for a refused recording, only path and error."""

    path: str
    start_s: float | None = None
    end_s: float | None = None
    error: str = ""
    labels: tuple[str, ...] | None = None
    probabilities_C: np.ndarray | None = None


def prediction_schema(classes: Sequence[str]) -> pa.Schema:
    """Return the schema of predictions over these classes."""
    fields: list[pa.Field[Any]] = [
        pa.field(PATH, pa.string()),
        pa.field(START, pa.float64()),
        pa.field(END, pa.float64()),
        pa.field(ERROR, pa.string()),
        pa.field(LABELS, pa.list_(pa.string())),
        pa.field(PROBABILITIES, pa.list_(pa.float32(), len(classes))),
    ]
    names = json.dumps([to_text(name) for name in classes], ensure_ascii=False)
    return pa.schema(fields, metadata={CLASSES: names.encode()})


def classes_of(schema: pa.Schema) -> tuple[str, ...]:
    """Return the class names that the metadata of a schema holds, in the order of the probabilities."""
    return tuple(json.loads(schema.metadata[CLASSES]))


def from_table(table: pa.Table) -> list[Prediction]:
    """Convert a table with the schema of `prediction_schema` to predictions."""
    return [
        Prediction(
            row[PATH], row[START], row[END], row[ERROR], None if row[LABELS] is None else tuple(row[LABELS]),
            None if row[LABELS] is None else np.array(row[PROBABILITIES], np.float32),
        )
        for row in table.to_pylist()
    ]  # fmt: skip


def to_table(predictions: Sequence[Prediction], classes: Sequence[str]) -> pa.Table:
    """Convert predictions to a table with the schema of `prediction_schema`."""
    nulls = [None] * len(classes)
    columns: dict[str, list[Any]] = {
        PATH: [to_text(own.path) for own in predictions],
        START: [own.start_s for own in predictions],
        END: [own.end_s for own in predictions],
        ERROR: [to_text(own.error) for own in predictions],
        LABELS: [None if own.labels is None else [to_text(name) for name in own.labels] for own in predictions],
        PROBABILITIES: [nulls if own.probabilities_C is None else own.probabilities_C.tolist() for own in predictions],
    }
    return pa.table(columns, schema=prediction_schema(classes))


def to_wide_table(table: pa.Table) -> pa.Table:
    """Convert a table of predictions to one with a column per class, for CSV."""
    classes = classes_of(table.schema)
    rows = table.to_pydict()
    columns: dict[str, pa.Array[Any]] = {
        PATH: pa.array([_to_cell(path) for path in rows[PATH]], pa.string()),
        START: pa.array(rows[START], pa.float64()),
        END: pa.array(rows[END], pa.float64()),
        ERROR: pa.array(rows[ERROR], pa.string()),
        LABELS: pa.array(
            [None if own is None else json.dumps(own, ensure_ascii=False) for own in rows[LABELS]], pa.string()
        ),
    }
    for c, name in enumerate(classes):
        columns[CLASS_PREFIX + name] = pa.array([own[c] for own in rows[PROBABILITIES]], pa.float32())
    return pa.table(columns)


def to_json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Convert a table of predictions to one object per row, with the probabilities by class."""
    classes = classes_of(table.schema)
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        refused = row[LABELS] is None
        row[PROBABILITIES] = None if refused else dict(zip(classes, row[PROBABILITIES], strict=True))
    return rows


def write_predictions(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Commit predictions as .csv (wide), .json or .parquet, by the suffix of the path."""
    write_tables(path, [to_table(predictions, classes)], classes)


def write_tables(path: Path, tables: Iterable[pa.Table], classes: Sequence[str]) -> None:
    """Commit tables of predictions as one file, as `write_predictions` does; memory holds one table at a time."""
    # With a path instead of a file, Arrow would remove the temporary file itself after an error.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".json":
            _write_json(file, tables)
        elif path.suffix == ".csv":
            empty = to_wide_table(to_table([], classes))
            with pyarrow.csv.CSVWriter(file, empty.schema) as csv:
                for table in tables:
                    csv.write_table(to_wide_table(table))
        else:
            with pyarrow.parquet.ParquetWriter(file, prediction_schema(classes)) as parquet:
                for table in tables:
                    parquet.write_table(table)


def _write_json(file: BinaryIO, tables: Iterable[pa.Table]) -> None:
    """Write the rows as the text that `storage.json_files.write_json` writes of their list."""
    rows = (row for table in tables for row in to_json_rows(table))
    first = True
    for row in rows:
        lines = json.dumps(row, indent=1, sort_keys=True).replace("\n", "\n ")
        file.write(("[\n " if first else ",\n ").encode() + lines.encode())
        first = False
    file.write(b"[]\n" if first else b"\n]\n")


def to_text(text: str) -> str:
    """Return a text that UTF-8 can hold: paths may have bytes that are not UTF-8, which Python keeps as surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def top_classes(scores_C: np.ndarray, count: int) -> list[int]:
    """Return the indices of the most probable classes, the most probable first."""
    found: list[int] = np.argsort(-scores_C, kind="stable")[:count].tolist()
    return found


def _to_cell(path: str) -> str:
    """Return the same path in a form that no spreadsheet runs as a formula."""
    return f"./{path}" if path.startswith(_FORMULA) else path
