"""Read recordings from the cells of a Parquet file, in order, with little memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.dataset.parquet.parquet_columns import find_audio_column
from ast_core.errors import ClipError

BATCH_BYTES = 8 << 20
"""Bytes of recordings that are decoded at a time."""
MOST_ROWS = 64
"""Largest number of rows that are decoded at a time."""
BUFFER_BYTES = 4 << 20
"""Bytes of a column that are read at a time; a request to a store reads so many."""


def read_cells(
    file: pa.NativeFile, members: Sequence[tuple[int, int]], audio_column: str = ""
) -> Iterator[bytes | ClipError | OSError]:
    """Yield the bytes of the cells at (row group, row in the group). Row groups without such cells are not read.

    A damaged page is an `OSError` for the cells that cannot be read for it; the next row group is read again.

    Args:
        file: open Parquet file.
        members: places of the cells. Ascending ones are read in one pass; equal neighbours are one object.
        audio_column: binary column, or a struct with a binary field `bytes`; "" finds it.

    Raises:
        ValueError: the file has no such column.
        pa.ArrowException: the file is no Parquet file.
        OSError: the file cannot be read.
    """
    # Without the buffer, pyarrow reads the column's complete share of a row group at once.
    parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
    column = _choose_column(parquet.schema_arrow, audio_column)
    for group, run in itertools.groupby(members, lambda member: member[0]):
        rows, given = [row for _, row in run], 0
        try:
            for cell in _read_rows(parquet, group, rows, column):
                yield cell
                given += 1
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            fault = OSError(f"row group {group} of the Parquet file cannot be read: {error}")
            yield from (fault for _ in rows[given:])


def _read_rows(
    parquet: pq.ParquetFile, group: int, rows: Sequence[int], column: str
) -> Iterator[bytes | ClipError | OSError]:
    """Yield cells of one row group."""
    count = parquet.metadata.row_group(group).num_rows if group < parquet.num_row_groups else 0
    last, cell = -1, None
    batches: Iterator[Any] = iter(())
    first, values = 0, _no_cells()
    for row in rows:
        if row >= count:
            yield OSError(
                f"the Parquet file has {parquet.num_row_groups} row groups, and row group {group} has {count} rows: "
                f"row {row} does not exist; the file has changed since it was listed"
            )
            continue
        if row != last or cell is None:
            if last < 0 or row < first:
                batches, first, values = _read_batches(parquet, group, column), 0, _no_cells()
            while row >= first + len(values):
                first, values = first + len(values), next(batches)
            last, cell = row, values[row - first].as_py()
        yield ClipError("read", "the recording's cell in the Parquet file is empty") if cell is None else cell


def _read_batches(parquet: pq.ParquetFile, group: int, column: str) -> Iterator[Any]:
    """Yield the binary cells of a row group as arrays of a few."""
    metadata = parquet.metadata.row_group(group)
    sizes = [
        metadata.column(number).total_uncompressed_size
        for number in range(metadata.num_columns)
        if metadata.column(number).path_in_schema == column
    ]
    mean = max(1, sum(sizes) // max(1, metadata.num_rows))
    rows = max(1, min(MOST_ROWS, BATCH_BYTES // mean))
    for batch in parquet.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
        values: Any = batch.column(0)
        yield values.flatten()[0] if pa.types.is_struct(values.type) else values


def _no_cells() -> Any:
    return pa.array([], pa.binary())


def _choose_column(schema: pa.Schema, wanted: str) -> str:
    """Return the path of the column of bytes: that of the field `bytes` in a struct. ValueError if no column fits."""
    name = find_audio_column(schema, wanted)
    if not name:
        names = ", ".join(schema.names)
        raise ValueError(f"the Parquet file has no column {wanted or 'of recordings'} of binary type; it has {names}")
    return f"{name}.bytes" if pa.types.is_struct(schema.field(name).type) else name
