"""Parquet parts of the shards: their small columns, where their filterbanks lie, and maps of their bytes.

Shapes: N clips of a part, T frames, M mel bins.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.errors import DamagedError
from ast_core.shards.clip_table import SCHEMA, ClipTable

LARGEST_PAGE_HEAD = 128
"""Upper limit in bytes for the head of a page, 31 as pyarrow writes it; the heads of two pages would be longer."""
MOST_MAPPED = 16_384
"""Parts that a reader maps at the same time; a process may have 65,530 maps on Linux (vm.max_map_count)."""


@contextlib.contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Turn errors in reading a part into a DamagedError with its path."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise DamagedError(f"Shard {path} is missing or damaged ({error}). Run prepare again.") from error


def require_bytes(path: Path, size: int, least: int) -> None:
    """Raise DamagedError if a part has another size, or is too small for its rows.

    Args:
        path: Parquet file.
        size: bytes that it must have; 0 if unknown.
        least: bytes of its filterbanks, before memory is allocated for them.
    """
    with explain_damage(path):
        have = path.stat().st_size
        if size and have != size:
            raise ValueError(f"it has {have} bytes, not {size}")
        if have < least:
            raise ValueError(f"its {have} bytes cannot hold the {least} bytes of its rows")


def read_part(path: Path, rows: int, shape: tuple[int, int], classes: int) -> ClipTable:
    """Read all columns of a part except the filterbanks.

    Args:
        path: Parquet file.
        rows: number of clips that it must have.
        shape: T and M.
        classes: number of labels.

    Raises:
        DamagedError: it is not the file that was written.
    """
    size = shape[0] * shape[1] * 2
    with explain_damage(path), pq.ParquetFile(path, memory_map=True) as file:
        if file.metadata.num_rows != rows:
            raise ValueError(f"it has {file.metadata.num_rows} rows, not {rows}")
        if pa.field("fbank", pa.binary(size)) not in list(file.schema_arrow):
            raise ValueError(f"it has no filterbanks of {shape[0]} x {shape[1]}")
        counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        offset_N = spread_offsets(find_filterbanks(file, size), counts, size)
        table = file.read(columns=["clip_id", "labels", "num_frames", "crc32"]).append_column(
            "fbank_offset", [pa.array(offset_N)]
        )
        batches = table.cast(SCHEMA).combine_chunks().to_batches()
        return ClipTable.from_arrow(batches[0] if batches else pa.RecordBatch.from_pylist([], SCHEMA), classes)


def find_filterbanks(file: pq.ParquetFile, size: int) -> list[int]:
    """Return where the filterbanks of each row group begin in the file.

    The uncompressed fixed-size values of a row group are one page, and the page ends with them. Reading them in place
    takes a third of the time of pyarrow's random access, which reads complete row groups. The rows' checksums are
    checked at each read, so a wrong offset is noticed.

    Args:
        file: a part.
        size: bytes of one filterbank.

    Raises:
        ValueError: the filterbanks are stored in another way.
    """
    column = file.schema_arrow.get_field_index("fbank")  # equals the column's number: no earlier column has two leaves
    offsets = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunk = group.column(column)
        head = chunk.total_compressed_size - group.num_rows * size
        if chunk.path_in_schema != "fbank" or chunk.compression != "UNCOMPRESSED" or not 0 < head < LARGEST_PAGE_HEAD:
            raise ValueError("its filterbanks do not have the layout that prepare writes")
        offsets.append(chunk.data_page_offset + head)
    return offsets


def spread_offsets(first_G: Sequence[int], counts_G: Sequence[int], size: int) -> np.ndarray:
    """Return where each row's filterbank begins, int64 [N], from where those of each row group begin.

    Args:
        first_G: first byte of each group's filterbanks.
        counts_G: rows of each group.
        size: bytes of one filterbank.
    """
    groups = [first + size * np.arange(count) for first, count in zip(first_G, counts_G, strict=True)]
    return np.concatenate([np.empty(0, np.int64), *groups])


class MappedParts:
    """Bytes of the parts, each mapped when it is first read.

    Each map keeps a file open. If the system allows fewer open files than twice the parts, the maps that were not used
    for the longest time are closed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._most = min(MOST_MAPPED, max(1, allow_open_files(2 * len(paths)) // 2))
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def bytes_of(self, part: int) -> np.ndarray:
        """Return the bytes of a part by its number, uint8; OSError or ValueError if the file cannot be mapped."""
        with self._lock:
            found = self._maps.get(part)
            if found is None:
                while len(self._maps) >= self._most:
                    self._maps.popitem(last=False)
                found = self._maps[part] = np.memmap(self._paths[part], np.uint8, "r")
            self._maps.move_to_end(part)
            return found


def allow_open_files(wanted: int) -> int:
    """Raise this process's soft limit of open files by what one reader may need, as far as the system allows.

    Args:
        wanted: files of the reader; 1024 more are asked for the rest of the process.

    Returns:
        The limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + 1024
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return limit
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses more than its kernel's limit, whatever `hard` is
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return soft
