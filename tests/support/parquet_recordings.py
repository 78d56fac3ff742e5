"""Parquet files with recordings inside, as Hugging Face's library and others write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = pa.list_(pa.string())
GROUP = 3
"""Rows of a row group."""


def recording(number: int, name: str | None = None) -> dict[str, Any]:
    """Return a cell of the column `audio`; no decoder sees its bytes."""
    return {"bytes": b"fLaC" + bytes([number % 256]) * (20 + number), "path": name or f"r{number}.flac"}


def features(**kinds: Any) -> dict[str, str]:
    """Return the metadata that Hugging Face's library stores in a schema."""
    return {"huggingface": json.dumps({"info": {"features": kinds}})}


def write(
    path: Path,
    columns: Mapping[str, Sequence[Any] | pa.Array],
    types: Mapping[str, pa.DataType] | None = None,
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write a file; the column `audio` is a struct of bytes and path, and `labels` a list of texts, by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"audio": AUDIO, "labels": TEXTS, "human_labels": TEXTS} | dict(types or {})
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values, known.get(name))
        for name, values in columns.items()
    }
    table = pa.table(arrays).replace_schema_metadata(metadata)
    pq.write_table(table, path, **{"row_group_size": GROUP, **options})
    return path


def class_label(*names: str) -> dict[str, Any]:
    return {"_type": "ClassLabel", "names": list(names)}
