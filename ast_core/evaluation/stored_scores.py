"""Stored probabilities of a data set's clips: a Parquet table whose metadata names the model and the clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.errors import DamagedError
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import atomic_write

IDENTITY = b"identity"
"""Key of the metadata that holds the identity."""
FAULTS = (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError, MemoryError)
"""Exceptions that a damaged file, or a table with other columns, can raise."""


def identity_of(bundle_digest: str, reader: ShardReader) -> dict[str, str]:
    """Return the identity of a bundle's scores on a reader's clips: bundle digest, data hash, split."""
    return {"bundle_digest": bundle_digest, "data_hash": reader.index.data_hash, "split": "+".join(reader.splits)}


def read_scores(path: Path, identity: Mapping[str, str]) -> np.ndarray | None:
    """Read scores, float32 [N, C], in the order of the clips.

    Returns:
        The scores; None if the file does not exist or was written for another bundle or other data.

    Raises:
        DamagedError: the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, columns=["scores"])
        if (table.schema.metadata or {}).get(IDENTITY) != _encode(identity):
            return None
        lists: list[Any] = table["scores"].chunks
        values = [chunk.flatten().to_numpy() for chunk in lists]
        flat = np.concatenate([np.empty(0, np.float32), *values])
        return flat.astype(np.float32, casting="same_kind", copy=False).reshape(table.num_rows, -1)
    except FAULTS as error:
        raise DamagedError(f"{path} is damaged ({error}). Remove it: it is made again.") from error


def identity_in(path: Path) -> dict[str, str]:
    """Return the identity that a file of scores was written with; empty if it has none.

    Raises:
        DamagedError: the file cannot be read.
    """
    try:
        found = json.loads((pq.read_schema(path).metadata or {}).get(IDENTITY, b"{}"))
        return {str(key): str(value) for key, value in found.items()}
    except FAULTS as error:
        raise DamagedError(f"{path} is damaged ({error}). Remove it: it is made again.") from error


def write_scores(path: Path, identity: Mapping[str, str], scores_NC: np.ndarray, reader: ShardReader) -> None:
    """Commit the scores and labels of each clip of a reader, with their identity."""
    write_score_rows(path, identity, reader.clip_ids, scores_NC, reader.labels.to_arrow().cast(pa.list_(pa.int32())))


def write_score_rows(
    path: Path,
    identity: Mapping[str, str],
    clip_ids: Sequence[str],
    scores_NC: np.ndarray,
    labels: pa.Array[Any] | Sequence[Sequence[int]],
) -> None:
    """Commit the scores and labels of clips, with their identity.

    Args:
        path: file to write.
        identity: model and clips, as `read_scores` compares them.
        clip_ids: ids of the clips.
        scores_NC: scores, float32.
        labels: indices of each clip's labels.
    """
    table = pa.table(
        {
            "clip_id": pa.array(clip_ids, pa.string()),
            "scores": pa.array(list(scores_NC), pa.list_(pa.float32())),
            "labels": labels if isinstance(labels, pa.Array) else pa.array(labels, pa.list_(pa.int32())),
        }
    ).replace_schema_metadata({IDENTITY: _encode(identity)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)  # if it got the path, it would remove the file after an error


def _encode(identity: Mapping[str, str]) -> bytes:
    return json.dumps(dict(identity), sort_keys=True).encode()
