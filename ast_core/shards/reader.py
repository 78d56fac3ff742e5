"""Read filterbanks from Parquet shards, fast and in any order.

A folder of shards has SPLIT/part-00000.parquet with its marker SPLIT/part-00000.json, rejects.parquet, and index.json,
which is written last. The filterbank column is FixedSizeBinary, uncompressed, in row groups of 8, so that a random row
costs a fraction of a millisecond. Each row has a CRC-32, which is checked at each read.

Shapes: N clips, B a batch of them, R rows of a row group, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.errors import DamagedError
from ast_core.shards.index import ShardIndex
from ast_core.shards.writer import row_crc32

LARGEST_PAGE_HEAD = 128
"""Upper limit in bytes for the head of a page, 31 as pyarrow writes it; the heads of two pages would be longer."""


class ShardReader:
    """Reader of a prepared folder's splits as one list of clips."""

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        """Open every part and read all columns except the filterbanks.

        Args:
            folder: folder of shards.
            splits: names of the splits, joined in this order.

        Raises:
            UserError: the folder has no shards, or a split does not exist.
            DamagedError: a part is missing or is not the committed file, or the counts of a split do not balance.
        """
        self.folder, self.splits = folder, tuple(splits)
        self.index = ShardIndex.load(folder)
        self.index.require_splits(splits)
        self.index.require_balance(splits)
        self._shape = (int(self.index.front_end["target_frames"]), int(self.index.front_end["num_mel_bins"]))
        parts = [(folder / split, part) for split in splits for part in self.index.splits[split].parts]
        self._paths = [split / part.name for split, part in parts if part.rows]
        rows = [part.rows for _, part in parts if part.rows]
        for path, count in zip(self._paths, rows, strict=True):
            _require_bytes(path, count * self._shape[0] * self._shape[1] * 2)
        self._first_N = np.cumsum([0, *rows])
        _allow_open_files(len(rows))
        self._files: list[np.ndarray] = []
        self._offset_N = np.zeros(sum(rows), np.int64)
        self.clip_ids: list[str] = []
        self.num_frames_N = np.zeros(sum(rows), np.int32)
        self.labels_NC = np.zeros(
            (sum(rows), len(self.index.labels)), np.uint8
        )  # AudioSet's 10^9 values are in every rank's memory
        self._crc32_N = np.zeros(sum(rows), np.uint32)
        for path, count in zip(self._paths, rows, strict=True):
            with _explain_damage(path):
                self._open_part(path, count)
        self.targets_NC = self.labels_NC
        """Targets of training: the labels, unless distillation replaces them."""

    def _open_part(self, path: Path, rows: int) -> None:
        """Open a part and read its small columns; ValueError if it is not the file that was written."""
        file = pq.ParquetFile(path, memory_map=True)
        if file.metadata.num_rows != rows:
            raise ValueError(f"it has {file.metadata.num_rows} rows, not {rows}")
        size = self._shape[0] * self._shape[1] * 2
        if pa.field("fbank", pa.binary(size)) not in list(file.schema_arrow):
            raise ValueError(f"it has no filterbanks of {self._shape[0]} x {self._shape[1]}")
        place = slice(len(self.clip_ids), len(self.clip_ids) + rows)
        self._offset_N[place] = _find_offsets(file, size)
        table = file.read(columns=["clip_id", "labels", "num_frames", "crc32"]).to_pydict()
        self.num_frames_N[place] = table["num_frames"]
        self._crc32_N[place] = table["crc32"]
        for row, labels in enumerate(table["labels"], place.start):
            self.labels_NC[row, labels] = 1
        self.clip_ids += table["clip_id"]
        self._files.append(np.memmap(path, np.uint8, "r"))

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clip_ids)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the filterbanks of clips in the given order; a clip may occur more than once.

        Args:
            indices: indices of clips, int64 [B].

        Returns:
            Raw log-mel, float16 [B, T, M].

        Raises:
            DamagedError: a part cannot be read, or its bytes are not the ones that were written.
            IndexError: an index is out of range.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()} to {indices.max()} are not all in 0 to {len(self) - 1}")
        out_BTM = np.empty((len(indices), *self._shape), np.float16)
        part_B = np.searchsorted(self._first_N, indices, side="right") - 1
        for place, (index, part) in enumerate(zip(indices.tolist(), part_B.tolist(), strict=True)):
            with _explain_damage(self._paths[part]):
                count = self._shape[0] * self._shape[1]
                fbank_TM = np.frombuffer(self._files[part], "<f2", count, self._offset_N[index]).reshape(self._shape)
                self._check_row(index, fbank_TM)
            out_BTM[place] = fbank_TM
        return out_BTM

    def _check_row(self, index: int, fbank_TM: np.ndarray) -> None:
        """Raise ValueError if a row's checksum differs."""
        labels = np.flatnonzero(self.labels_NC[index])
        found = row_crc32(self.clip_ids[index], labels, self.num_frames_N[index], fbank_TM.data)
        if found != self._crc32_N[index]:
            raise ValueError(f"the checksum of clip {self.clip_ids[index]} differs")


def _require_bytes(path: Path, size: int) -> None:
    """Raise DamagedError if a part is too small for its rows, before memory is allocated for them."""
    with _explain_damage(path):
        have = path.stat().st_size
        if have < size:
            raise ValueError(f"its {have} bytes cannot hold the {size} bytes of its rows")


def _find_offsets(file: pq.ParquetFile, size: int) -> np.ndarray:
    """Return where each row's filterbank begins in the file, int64 [rows].

    The uncompressed fixed-size values of a row group are one page, and the page ends with them. Reading them in place
    takes a third of the time of pyarrow's random access, which reads complete row groups. The rows' checksums are
    checked at each read, so a wrong offset is noticed.
    """
    column = file.schema_arrow.get_field_index("fbank")  # equals the column's number: no earlier column has two leaves
    offsets = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunk = group.column(column)
        head = chunk.total_compressed_size - group.num_rows * size
        if chunk.path_in_schema != "fbank" or chunk.compression != "UNCOMPRESSED" or not 0 < head < LARGEST_PAGE_HEAD:
            raise ValueError("its filterbanks do not have the layout that prepare writes")
        offsets.append(chunk.data_page_offset + head + size * np.arange(group.num_rows))
    return np.concatenate(offsets)


@contextlib.contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    """Turn errors in reading a part into a DamagedError with its path."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise DamagedError(f"Shard {path} is missing or damaged ({error}). Run prepare again.") from error


def _allow_open_files(parts: int) -> None:
    """Raise this process's soft limit of open files: each part keeps one open, and AudioSet has four thousand parts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = parts + 1024
    if resource.RLIM_INFINITY != soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses more than its kernel's limit, whatever `hard` is
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
