"""Everything that the shards hold of their clips except the filterbanks, in arrays that may be mapped from a file.

Shapes: N clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from ast_core.shards.sparse_labels import SparseLabels

_IDS_AT_ONCE = 8192
"""Ids that are Python strings at the same time while all are read in order."""
SCHEMA = pa.schema(
    [
        ("clip_id", pa.large_string()),
        ("labels", pa.large_list(pa.int32())),
        ("num_frames", pa.int32()),
        ("crc32", pa.uint32()),
        ("fbank_offset", pa.int64()),
    ]
)
"""Columns of a table as Arrow."""


class ClipIds(Sequence[str]):
    """Ids of clips in order, kept as Arrow's bytes: two million Python strings would take 140 MiB."""

    def __init__(self, ids: pa.ChunkedArray[Any]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return the id of one clip, or the ids of a slice as a list."""
        if isinstance(index, slice):
            return [str(self._ids[place]) for place in range(len(self))[index]]
        return str(self._ids[int(index)])

    def __iter__(self) -> Iterator[str]:
        """Yield the ids in order."""
        for first in range(0, len(self), _IDS_AT_ONCE):
            names: list[Any] = self._ids.slice(first, _IDS_AT_ONCE).to_pylist()
            yield from names

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same ids in the same order."""
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the number of ids and the first of them."""
        return f"ClipIds({len(self)} ids, {self[:3]} ...)"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.ChunkedArray[Any]:  # noqa: A002, Arrow's name
        """Return the ids for `pyarrow.array`."""
        return self._ids if type is None else self._ids.cast(type)


@dataclass(frozen=True)
class ClipTable:
    """What the shards hold of N clips except their filterbanks."""

    ids: pa.ChunkedArray[Any]
    """Ids, large strings."""
    labels: SparseLabels
    num_frames_N: np.ndarray
    """Decoded frames before padding or cutting, int32."""
    crc32_N: np.ndarray
    """CRC-32 of each row, uint32."""
    offset_N: np.ndarray
    """First byte of each filterbank in the file of its part, int64."""

    @staticmethod
    def from_arrow(columns: pa.RecordBatch, classes: int) -> ClipTable:
        """Return the table of columns of `SCHEMA`, whose memory it shares.

        Raises:
            ValueError: a value is missing or the columns are not those of a table.
            pa.ArrowException: the columns are damaged.
        """
        if columns.schema != SCHEMA or any(column.null_count for column in columns.columns):
            raise ValueError("its columns are not those of clips, or values are missing")
        columns.validate(full=True)
        lists: Any = columns.column("labels")
        labels = SparseLabels(lists.offsets.to_numpy(), lists.values.to_numpy(), classes)
        numbers = (columns.column(name).to_numpy() for name in ("num_frames", "crc32", "fbank_offset"))
        return ClipTable(pa.chunked_array([columns.column("clip_id")]), labels, *numbers)

    def to_arrow(self) -> pa.RecordBatch:
        """Return the table as columns of `SCHEMA`."""
        ids: Any = self.ids.chunk(0) if self.ids.num_chunks == 1 else pa.concat_arrays(self.ids.chunks)
        numbers = [pa.array(values) for values in (self.num_frames_N, self.crc32_N, self.offset_N)]
        return pa.record_batch([ids, self.labels.to_arrow(), *numbers], schema=SCHEMA)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.offset_N)


def join_tables(tables: Sequence[ClipTable], classes: int) -> ClipTable:
    """Return the clips of several tables in order; a single table is returned as it is."""
    if len(tables) == 1:
        return tables[0]
    batches = [table.to_arrow() for table in tables]
    joined = pa.Table.from_batches(batches, SCHEMA).combine_chunks().to_batches()
    empty = pa.RecordBatch.from_pylist([], SCHEMA)
    return ClipTable.from_arrow(joined[0] if joined else empty, classes)
