"""Parquet shards of filterbanks: how a part is written, what the index says, and fast reading in any order.

FOLDER/SPLIT/part-00000.parquet and its marker part-00000.json; FOLDER/rejects.parquet; FOLDER/index.json, committed last.
The filterbank column is FixedSizeBinary, uncompressed, in row groups of 8: a random row costs a fraction of a millisecond.

Shapes: N clips, B a batch of them, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.config import require
from ast_core.errors import DamagedError
from ast_core.files import committed, read_json, sha256_of

INDEX = "index.json"
ROW_GROUP = 8
METADATA_KEY = b"ast_pipeline"


@dataclass(frozen=True)
class Row:
    """One clip of a part."""

    clip_id: str
    labels: tuple[int, ...]
    num_frames: int
    """Frames of the recording, before padding or cutting."""
    fbank_TM: np.ndarray
    """Raw log-mel, float16 [T, M], padded with 0."""


def write_part(path: Path, rows: Sequence[Row], metadata: dict[str, Any], frames: int, bins: int) -> dict[str, Any]:
    """Commit one part.

    Args:
        path: of the Parquet file.
        rows: its clips; may be none.
        metadata: front end and labels, kept in the schema so that the file explains itself.
        frames: T.
        bins: M.

    Returns:
        Its rows, sha256, and over all values their sum, sum of squares (float64) and count.
    """
    binary = pa.binary(frames * bins * 2)
    fields = [("clip_id", pa.string()), ("labels", pa.list_(pa.int32())), ("num_frames", pa.int32()), ("fbank", binary)]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    columns = [
        pa.array([row.clip_id for row in rows], pa.string()),
        pa.array([list(row.labels) for row in rows], pa.list_(pa.int32())),
        pa.array([row.num_frames for row in rows], pa.int32()),
        pa.array([row.fbank_TM.astype("<f2", copy=False).tobytes() for row in rows], binary),
    ]
    with committed(path) as beside:
        pq.write_table(
            pa.table(columns, schema=schema), beside, row_group_size=ROW_GROUP, compression="NONE",
            use_dictionary=False, write_statistics=False,
        )  # fmt: skip
    values = [row.fbank_TM.astype(np.float64) for row in rows]
    return {
        "rows": len(rows),
        "sha256": sha256_of(path),
        "sum": float(sum(value.sum() for value in values)),
        "sum_sq": float(sum(np.square(value).sum() for value in values)),
        "count": len(rows) * frames * bins,
    }


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds."""

    front_end: dict[str, Any]
    labels: tuple[str, ...]
    single_label: bool
    layout: str
    splits: dict[str, dict[str, Any]]
    """A split's books (listed, kept, rejected, missing), sums, and parts with rows and sha256."""
    data_hash: str
    """Over all parts' hashes, labels and front end: the same data has the same hash."""

    @staticmethod
    def load(folder: Path) -> ShardIndex:
        """The index of a prepared folder.

        Raises:
            UserError: there is none.
            DamagedError: it is not what prepare wrote.
        """
        path = folder / INDEX
        require(path.is_file(), f"There are no shards in {folder}: run prepare first, or give --shards.")
        values = read_json(path, "Index of the shards")
        try:
            return ShardIndex(**{**values, "labels": tuple(values["labels"])})
        except (TypeError, KeyError) as error:
            raise DamagedError(f"{path} is not an index of shards ({error}). Run prepare again.") from None

    def require_splits(self, splits: Sequence[str]) -> None:
        """UserError that names the available splits, if one is not there."""
        unknown = [split for split in splits if split not in self.splits]
        names = ", ".join(sorted(self.splits))
        require(not unknown, f"There is no split {', '.join(unknown)}; the data set has {names}. Name them in data.*-split.")

    def statistics(self, splits: Sequence[str]) -> tuple[float, float]:
        """Mean and standard deviation of raw log-mel over splits, padding included as in the published recipe."""
        self.require_splits(splits)
        total, squares, count = (sum(self.splits[split][key] for split in splits) for key in ("sum", "sum_sq", "count"))
        require(count > 0, f"The splits {', '.join(splits)} hold no clip to take statistics of.")
        mean = total / count
        return mean, float(max(squares / count - mean**2, 1e-12) ** 0.5)


class ShardReader:
    """Splits of a prepared folder as one list of clips, read in any order.

    Args:
        folder: of the shards.
        splits: joined in this order.

    Raises:
        UserError: no shards, or no such split.
        DamagedError: a part is missing or not the file that was committed.
    """

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        self.index = ShardIndex.load(folder)
        self.index.require_splits(splits)
        self._shape = (int(self.index.front_end["target_frames"]), int(self.index.front_end["num_mel_bins"]))
        parts = [(folder / split / part["name"], part["rows"]) for split in splits for part in self.index.splits[split]["parts"]]
        self._files = [_open(path, rows) for path, rows in parts if rows]
        self._paths = [path for path, rows in parts if rows]
        self._first_N = np.cumsum([0, *(rows for _, rows in parts if rows)])
        tables = [file.read(columns=["clip_id", "labels", "num_frames"]) for file in self._files]
        self.clip_ids: list[str] = [clip for table in tables for clip in table["clip_id"].to_pylist()]
        frames = [count for table in tables for count in table["num_frames"].to_pylist()]
        self.num_frames_N: np.ndarray = np.array(frames, np.int32)
        self.labels_NC = np.zeros((len(self.clip_ids), len(self.index.labels)), np.float32)
        for row, labels in enumerate(labels for table in tables for labels in table["labels"].to_pylist()):
            self.labels_NC[row, labels] = 1.0

    def __len__(self) -> int:
        """Clips."""
        return len(self.clip_ids)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Filterbanks of clips, in the order given, duplicates allowed.

        Args:
            indices: int64 [B].

        Returns:
            float16 [B, T, M].

        Raises:
            DamagedError: a part cannot be read.
        """
        out_BTM = np.empty((len(indices), *self._shape), np.float16)
        part_B = np.searchsorted(self._first_N, indices, side="right") - 1
        row_B = indices - self._first_N[part_B]
        wanted: dict[tuple[int, int], list[int]] = {}
        for place, (part, row) in enumerate(zip(part_B.tolist(), row_B.tolist(), strict=True)):
            wanted.setdefault((part, row // ROW_GROUP), []).append(place)
        for (part, group), places in wanted.items():
            group_RTM = self._read_group(part, group)
            out_BTM[places] = group_RTM[row_B[places] % ROW_GROUP]
        return out_BTM

    def _read_group(self, part: int, group: int) -> np.ndarray:
        try:
            column = self._files[part].read_row_group(group, columns=["fbank"]).column(0).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"Shard {self._paths[part]} cannot be read ({error}). Run prepare again.") from None
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0)
        values = np.frombuffer(column.buffers()[1], "<f2")
        size = self._shape[0] * self._shape[1]
        return values[column.offset * size : (column.offset + len(column)) * size].reshape(-1, *self._shape)


def _open(path: Path, rows: int) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"Shard {path} is missing or damaged ({error}). Run prepare again.") from None
    if file.metadata.num_rows != rows:
        raise DamagedError(f"Shard {path} has {file.metadata.num_rows} rows, not {rows}. Run prepare again.")
    return file
