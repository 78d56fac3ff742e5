"""Parquet shards of filterbanks: how a part is written, what the index says, and fast reading in any order.

FOLDER/SPLIT/part-00000.parquet and its marker part-00000.json; FOLDER/rejects.parquet; FOLDER/index.json, the last.
The filterbank column is FixedSizeBinary, uncompressed, in row groups of 8: a random row costs a fraction of a
millisecond. A row's CRC-32 travels with it and is checked at each read.

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
"""Bytes before a page's values: 31 in what pyarrow writes. Two pages' heads would not be taken for one."""


class ShardReader:
    """Splits of a prepared folder as one list of clips, read in any order."""

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        """Open every part and read all but the filterbanks.

        Args:
            folder: of the shards.
            splits: joined in this order.

        Raises:
            UserError: no shards, or no such split.
            DamagedError: a part is missing or not the file that was committed, or a clip is in no book.
        """
        self.folder, self.splits = folder, tuple(splits)
        self.index = ShardIndex.load(folder)
        self.index.require_splits(splits)
        self.index.require_balance(splits)
        self._shape = (int(self.index.front_end["target_frames"]), int(self.index.front_end["num_mel_bins"]))
        parts = [(folder / split, part) for split in splits for part in self.index.splits[split]["parts"]]
        self._paths = [split / part["name"] for split, part in parts if part["rows"]]
        rows = [part["rows"] for _, part in parts if part["rows"]]
        for path, count in zip(self._paths, rows, strict=True):
            _require_bytes(path, count * self._shape[0] * self._shape[1] * 2)
        self._first_N = np.cumsum([0, *rows])
        _allow_open_files(len(rows))
        self._files: list[np.ndarray] = []
        self._offset_N = np.zeros(sum(rows), np.int64)
        self.clip_ids: list[str] = []
        self.num_frames_N = np.zeros(sum(rows), np.int32)
        self.labels_NC = np.zeros((sum(rows), len(self.index.labels)), np.uint8)  # every rank has AudioSet's 10^9
        self._crc32_N = np.zeros(sum(rows), np.uint32)
        for path, count in zip(self._paths, rows, strict=True):
            with _damage_named(path):
                self._open(path, count)
        self.targets_NC = self.labels_NC
        """What training aims at: the labels, unless others are put in their place."""

    def _open(self, path: Path, rows: int) -> None:
        """Keep a part's file open and take in its small columns; ValueError where it is not what was written."""
        file = pq.ParquetFile(path, memory_map=True)
        if file.metadata.num_rows != rows:
            raise ValueError(f"{file.metadata.num_rows} rows, not {rows}")
        size = self._shape[0] * self._shape[1] * 2
        if pa.field("fbank", pa.binary(size)) not in list(file.schema_arrow):
            raise ValueError(f"no filterbanks of {self._shape[0]} x {self._shape[1]}")
        place = slice(len(self.clip_ids), len(self.clip_ids) + rows)
        self._offset_N[place] = _value_offsets(file, size)
        table = file.read(columns=["clip_id", "labels", "num_frames", "crc32"]).to_pydict()
        self.num_frames_N[place] = table["num_frames"]
        self._crc32_N[place] = table["crc32"]
        for row, labels in enumerate(table["labels"], place.start):
            self.labels_NC[row, labels] = 1
        self.clip_ids += table["clip_id"]
        self._files.append(np.memmap(path, np.uint8, "r"))

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
            DamagedError: a part cannot be read, or its bytes are not those that were written.
            IndexError: there is no such clip.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"clips {indices.min()} to {indices.max()} of {len(self)}")
        out_BTM = np.empty((len(indices), *self._shape), np.float16)
        part_B = np.searchsorted(self._first_N, indices, side="right") - 1
        for place, (index, part) in enumerate(zip(indices.tolist(), part_B.tolist(), strict=True)):
            with _damage_named(self._paths[part]):
                count = self._shape[0] * self._shape[1]
                fbank_TM = np.frombuffer(self._files[part], "<f2", count, self._offset_N[index]).reshape(self._shape)
                self._check(index, fbank_TM)
            out_BTM[place] = fbank_TM
        return out_BTM

    def _check(self, index: int, fbank_TM: np.ndarray) -> None:
        labels = np.flatnonzero(self.labels_NC[index])
        found = row_crc32(self.clip_ids[index], labels, self.num_frames_N[index], fbank_TM.data)
        if found != self._crc32_N[index]:
            raise ValueError(f"the checksum of clip {self.clip_ids[index]} differs")


def _require_bytes(path: Path, size: int) -> None:
    """DamagedError for a part that cannot hold its rows: before memory is taken for them."""
    with _damage_named(path):
        have = path.stat().st_size
        if have < size:
            raise ValueError(f"{have} bytes cannot hold the {size} of its rows")


def _value_offsets(file: pq.ParquetFile, size: int) -> np.ndarray:
    """Where each row's filterbank begins in the file, int64 [rows].

    A row group's uncompressed values of fixed size are one page, which ends with them. Reading them in place takes a
    third of the time of pyarrow's random access, which gives whole row groups; the rows' checksums vouch for it.
    """
    column = file.schema_arrow.get_field_index("fbank")  # no column before it has more than one leaf
    offsets = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunk = group.column(column)
        head = chunk.total_compressed_size - group.num_rows * size
        if chunk.path_in_schema != "fbank" or chunk.compression != "UNCOMPRESSED" or not 0 < head < LARGEST_PAGE_HEAD:
            raise ValueError("its filterbanks are not laid out as prepare writes them")
        offsets.append(chunk.data_page_offset + head + size * np.arange(group.num_rows))
    return np.concatenate(offsets)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What goes wrong in reading a part, as `DamagedError` with its path."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise DamagedError(f"Shard {path} is missing or damaged ({error}). Run prepare again.") from error


def _allow_open_files(parts: int) -> None:
    """Raise this process's soft limit of open files: a part holds one, and AudioSet has four thousand parts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = parts + 1024
    if resource.RLIM_INFINITY != soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
