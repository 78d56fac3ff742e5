"""Read the listing columns of Parquet files with recordings, row by row, without the recordings themselves."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.dataset.parquet.parquet_columns import FoundColumns
from ast_core.dataset.source_files import SourceFile, open_source_file
from ast_core.errors import UserError
from ast_core.storage.file_systems import is_uri

_ROWS = 8192
"""Rows that are read at a time."""
_CELLS = 16
"""Recordings that are read at a time where only reading them says which are missing."""
_FILES_AHEAD = 16
"""Files of a store whose listing columns are read at the same time."""


class NotUtf8:
    """Mark of a cell whose text is not UTF-8."""


NOT_UTF8: Final = NotUtf8()


@dataclass(frozen=True)
class RowBatch:
    """Some rows of one file that follow each other."""

    first: int
    """Number of the first row in the file, from 0."""
    groups: Sequence[int]
    """Row group of each row."""
    rows: Sequence[int]
    """Place of each row in its row group."""
    missing: Sequence[bool]
    """Whether each row has no recording."""
    cells: dict[str, list[Any]]
    """Values of each column that was read, by its path in the schema."""


@dataclass(frozen=True)
class OpenedFile:
    """A file of a source, with its schema or the error of opening it, and the batches of its rows."""

    file: SourceFile
    error: str
    """What is wrong with the file; "" if nothing."""
    columns: FoundColumns | None
    rows: int
    batches: Iterable[RowBatch]
    """Batches; iterating raises `ValueError` if the file is damaged."""


def read_schema(path: str) -> pa.Schema:
    """Return the schema of a Parquet file.

    Raises:
        ValueError: the file cannot be read or is no Parquet file.
        UserError: the kind of URI is unknown.
    """
    try:
        with open_source_file(path) as file:
            return pq.ParquetFile(file).schema_arrow
    except _ERRORS as error:
        raise ValueError(_explain(error)) from error


def open_files(files: Sequence[SourceFile], find_columns: Callable[[pa.Schema], FoundColumns]) -> Iterator[OpenedFile]:
    """Yield each file with its columns and rows, in the given order.

    Local files are read while their batches are taken. Of objects in a store, `_FILES_AHEAD` are read at the same time:
    their listing columns are few bytes, and each request waits long.

    Args:
        files: files of a source.
        find_columns: function that returns the columns of a schema, and raises `UserError` if they do not fit.
    """
    read = functools.partial(_open, find_columns=find_columns)
    if not any(is_uri(file.path) for file in files):
        yield from map(read, files)
        return
    waiting: deque[Future[OpenedFile]] = deque()
    with ThreadPoolExecutor(_FILES_AHEAD, "parquet-listing") as pool:
        try:
            for file in files:
                waiting.append(pool.submit(_read_completely, file, find_columns))
                if len(waiting) > _FILES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _read_completely(file: SourceFile, find_columns: Callable[[pa.Schema], FoundColumns]) -> OpenedFile:
    """Read the listing columns of an object."""
    opened = _open(file, find_columns)
    try:
        return OpenedFile(file, opened.error, opened.columns, opened.rows, list(opened.batches))
    except ValueError as error:
        return OpenedFile(file, str(error), None, 0, ())


def _open(file: SourceFile, find_columns: Callable[[pa.Schema], FoundColumns]) -> OpenedFile:
    try:
        source = open_source_file(file.path)
        # With the buffer, the small columns of a row group, which are neighbours, are one request to a store.
        parquet = pq.ParquetFile(source, pre_buffer=is_uri(file.path))
        columns = find_columns(parquet.schema_arrow)
    except UserError as error:
        return OpenedFile(file, f"the file {error}", None, 0, ())
    except _ERRORS as error:
        return OpenedFile(file, _explain(error), None, 0, ())
    return OpenedFile(file, "", columns, parquet.metadata.num_rows, _read_batches(source, parquet, columns))


def _read_batches(source: pa.NativeFile, parquet: pq.ParquetFile, columns: FoundColumns) -> Iterator[RowBatch]:
    """Yield the rows of a file, and close it."""
    metadata = parquet.metadata
    first = 0
    with source:
        try:
            ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
            missing = _MissingCells(parquet, columns.content)
            # A file whose columns hold neither ids nor labels still has rows.
            wanted = columns.read or [columns.content]
            for batch in parquet.iter_batches(_ROWS, columns=wanted, use_threads=False):
                numbers = np.arange(first, first + len(batch))
                groups = np.searchsorted(ends, numbers, side="right")
                rows = numbers - np.concatenate([[0], ends])[groups]
                cells = {path: _to_list(_find_cells(batch, path)) for path in columns.read}
                absent = missing.find(groups, rows)
                yield RowBatch(first, groups.tolist(), rows.tolist(), absent, cells)
                first += len(batch)
        except _ERRORS as error:
            raise ValueError(_explain(error)) from error
    if first != metadata.num_rows:
        raise ValueError(f"the file says that it has {metadata.num_rows} rows, but {first} can be read")


class _MissingCells:
    """Find rows without a recording by the counts of nulls; only of row groups that have some is the column read."""

    def __init__(self, parquet: pq.ParquetFile, content: str) -> None:
        self._parquet = parquet
        self._content = content
        self._masks: dict[int, np.ndarray | None] = {}

    def find(self, groups: np.ndarray, rows: np.ndarray) -> list[bool]:
        """Return whether each row of a batch has no recording."""
        found = np.zeros(len(groups), bool)
        for group in np.unique(groups).tolist():
            if group not in self._masks:
                self._masks = {group: self._read_mask(group)}  # batches ascend, so one mask is enough
            mask, own = self._masks[group], groups == group
            if mask is not None:
                found[own] = mask[rows[own]]
        return list(map(bool, found.tolist()))

    def _read_mask(self, group: int) -> np.ndarray | None:
        """Return which rows of a group have no recording; None if all have one, or if no statistics say otherwise."""
        metadata = self._parquet.metadata.row_group(group)
        for number in range(metadata.num_columns):
            column = metadata.column(number)
            if column.path_in_schema == self._content:
                statistics: Any = column.statistics  # pyarrow's stub misspells has_null_count
                nulls = statistics.null_count if statistics is not None and statistics.has_null_count else 0
                break
        else:
            return None
        if not nulls:
            return None
        if nulls >= metadata.num_rows:
            return np.ones(metadata.num_rows, bool)
        batches = self._parquet.iter_batches(_CELLS, row_groups=[group], columns=[self._content], use_threads=False)
        masks = [_find_cells(batch, self._content).is_null().to_numpy(zero_copy_only=False) for batch in batches]
        return np.concatenate(masks)


def _find_cells(batch: pa.RecordBatch, path: str) -> pa.Array[Any]:
    """Return the cells at a path in the schema, which is a column, or a field of a struct."""
    if path in batch.schema.names:
        return batch.column(path)
    name, _, field = path.rpartition(".")
    struct: Any = batch.column(name)  # pyarrow's stub does not know arrays of structs
    cells: pa.Array[Any] = struct.flatten()[struct.type.get_field_index(field)]
    return cells


def _to_list(cells: pa.Array[Any]) -> list[Any]:
    """Return cells as Python values; those that are not UTF-8 become `NOT_UTF8`."""
    try:
        return list(cells.to_pylist())
    except UnicodeDecodeError:
        return [_to_value(cell) for cell in cells]


def _to_value(cell: pa.Scalar[Any]) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return NOT_UTF8


_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError)
"""Errors of pyarrow for files that are damaged or made to harm."""


def _explain(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "the file asks for more memory than there is; write it again"
    if isinstance(error, OSError) and error.strerror:
        return f"the file cannot be read: {error.strerror}"
    return f"not a readable Parquet file ({error}); write it again"
