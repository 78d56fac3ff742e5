"""Probabilities of a data set's clips on disk: a Parquet table that says which model's and which clips' they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.errors import DamagedError
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import atomic_write

IDENTITY = b"identity"
FAULTS = (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError, MemoryError)
"""What reading a Parquet file that is none, or other lists than scores, ends in."""


def identity_of(bundle_digest: str, reader: ShardReader) -> dict[str, str]:
    """What scores of a bundle on a reader's clips are told by."""
    return {"bundle_digest": bundle_digest, "data_hash": reader.index.data_hash, "split": "+".join(reader.splits)}


def read_scores(path: Path, identity: Mapping[str, str]) -> np.ndarray | None:
    """Scores, float32 [N, C], in the reader's order, that were written for the same bundle and data; None if not.

    Raises:
        DamagedError: the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, columns=["scores"])
        if (table.schema.metadata or {}).get(IDENTITY) != _bytes(identity):
            return None
        lists: list[Any] = table["scores"].chunks
        values = [chunk.flatten().to_numpy() for chunk in lists]
        flat = np.concatenate([np.empty(0, np.float32), *values])
        return flat.astype(np.float32, casting="same_kind", copy=False).reshape(table.num_rows, -1)
    except FAULTS as error:
        raise DamagedError(f"{path} is damaged ({error}). Remove it: it is made again.") from error


def identity_in(path: Path) -> dict[str, str]:
    """The identity that a file of scores was written with; empty if there is none.

    Raises:
        DamagedError: the file cannot be read.
    """
    try:
        found = json.loads((pq.read_schema(path).metadata or {}).get(IDENTITY, b"{}"))
        return {str(key): str(value) for key, value in found.items()}
    except FAULTS as error:
        raise DamagedError(f"{path} is damaged ({error}). Remove it: it is made again.") from error


def write_scores(path: Path, identity: Mapping[str, str], scores_NC: np.ndarray, reader: ShardReader) -> None:
    """Commit each clip's scores and labels, with what they are of."""
    table = pa.table(
        {
            "clip_id": pa.array(reader.clip_ids, pa.string()),
            "scores": pa.array(list(scores_NC), pa.list_(pa.float32())),
            "labels": pa.array([np.flatnonzero(row > 0) for row in reader.labels_NC], pa.list_(pa.int32())),
        }
    ).replace_schema_metadata({IDENTITY: _bytes(identity)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as file,
    ):  # given a path, it would remove a file that is too long
        pq.write_table(table, file)


def _bytes(identity: Mapping[str, str]) -> bytes:
    return json.dumps(dict(identity), sort_keys=True).encode()
