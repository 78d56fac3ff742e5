"""The one schema of stored embeddings, one row a recording or one row a patch in time.

| column | type | value |
|---|---|---|
| `path` | string | name of the recording, as in predictions |
| `start_s`, `end_s` | float64 | part of the recording, in seconds from its start; null if refused |
| `embedding` | float32 [E] | embedding; E nulls if refused |
| `error` | string | why the recording could not be used, else "" |

A refused recording has E nulls and not one null, because Arrow does not read null fixed-size lists from Parquet.

Shapes: K rows, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ast_core.evaluation.prediction_table import END, ERROR, PATH, START, to_text

EMBEDDING = "embedding"
"""Column of the embeddings."""


@dataclass(frozen=True)
class EmbeddedRows:
    """The rows of one recording."""

    path: str
    """Name of the recording."""
    embedding_KE: np.ndarray
    """Embeddings, float32."""
    starts_s: np.ndarray
    """Start of each row, float64 [K]."""
    ends_s: np.ndarray
    """End of each row, float64 [K]."""
    error: str = ""
    """Reason of a refusal. A refused recording has one row, whose values are not used."""

    @staticmethod
    def refuse(path: str, error: str, size: int) -> EmbeddedRows:
        """Return the row of a recording that cannot be used; `size` is E."""
        nothing = np.full(1, np.nan)
        return EmbeddedRows(path, np.zeros((1, size), np.float32), nothing, nothing, error)


def embedding_schema(size: int) -> pa.Schema:
    """Return the schema of embeddings of `size` values."""
    fields: list[pa.Field[Any]] = [
        pa.field(PATH, pa.string()),
        pa.field(START, pa.float64()),
        pa.field(END, pa.float64()),
        pa.field(EMBEDDING, pa.list_(pa.float32(), size)),
        pa.field(ERROR, pa.string()),
    ]
    return pa.schema(fields)


def to_embedding_table(rows: Sequence[EmbeddedRows], size: int) -> pa.Table:
    """Convert the rows of recordings to a table with the schema of `embedding_schema`."""
    counts = [len(own.starts_s) for own in rows]
    refused_N = np.repeat([bool(own.error) for own in rows], counts)
    values_NE = np.concatenate([own.embedding_KE for own in rows])
    # Each value has its own null: from a list's null, Arrow would write no values, and refuse to read the file.
    values = pa.array(values_NE.reshape(-1), pa.float32(), mask=np.repeat(refused_N, size))
    columns: dict[str, Any] = {
        PATH: [to_text(own.path) for own, count in zip(rows, counts, strict=True) for _ in range(count)],
        START: pa.array(np.concatenate([own.starts_s for own in rows]), mask=refused_N),
        END: pa.array(np.concatenate([own.ends_s for own in rows]), mask=refused_N),
        EMBEDDING: pa.FixedSizeListArray.from_arrays(values, size),
        ERROR: [to_text(own.error) for own, count in zip(rows, counts, strict=True) for _ in range(count)],
    }
    return pa.table(columns, schema=embedding_schema(size))
