"""Parquet shards of filterbanks: how a part is written, what the index says, and fast reading in any order.

FOLDER/SPLIT/part-00000.parquet and its marker part-00000.json; FOLDER/rejects.parquet; FOLDER/index.json, the last.
The filterbank column is FixedSizeBinary, uncompressed, in row groups of 8: a random row costs a fraction of a
millisecond. A row's CRC-32 travels with it and is checked at each read.

Shapes: N clips, B a batch of them, R rows of a row group, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import resource
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ast_core.config import MOST_FRAMES, from_dict, require
from ast_core.errors import DamagedError, UserError
from ast_core.storage.atomic_files import committed, read_checked, sha256_of

INDEX = "index.json"
REJECTS = "rejects.parquet"
ROW_GROUP = 8
LARGEST_PAGE_HEAD = 128
"""Bytes before a page's values: 31 in what pyarrow writes. Two pages' heads would not be taken for one."""
METADATA_KEY = b"ast_pipeline"


@dataclass(frozen=True)
class Row:
    """One clip of a part."""

    clip_id: str
    labels: tuple[int, ...]
    """Ascending."""
    num_frames: int
    """Frames that were decoded, before padding or cutting."""
    fbank_TM: np.ndarray
    """Raw log-mel, float16 [T, M], padded with 0."""


def write_part(
    path: Path, rows: Iterable[Row], metadata: dict[str, Any], frames: int, bins: int, at_most: int = 0
) -> dict[str, Any]:
    """Commit one part; its rows are taken eight at a time, so memory does not grow with them.

    Args:
        path: of the Parquet file.
        rows: its clips; may be none.
        metadata: front end and labels, kept in the schema so that the file explains itself.
        frames: T.
        bins: M.
        at_most: rows that there may be: without room for them nothing is begun.

    Returns:
        Its rows, sha256, bytes, and over all values their sum, sum of squares (float64) and count.
    """
    fields = [("clip_id", pa.string()), ("labels", pa.list_(pa.int32())), ("num_frames", pa.int32())]
    fields += [("crc32", pa.uint32()), ("fbank", pa.binary(frames * bins * 2))]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    count, total, squares = 0, 0.0, 0.0
    left = iter(rows)
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with committed(path, at_most * frames * bins * 2) as beside:
        with pq.ParquetWriter(beside, schema, **options) as writer:
            while group := list(islice(left, ROW_GROUP)):
                writer.write_table(_table(group, schema), row_group_size=ROW_GROUP)
                count += len(group)
                for row in group:
                    values = torch.from_numpy(row.fbank_TM).double().flatten()  # numpy's conversion is far slower
                    total += float(values.sum())
                    squares += float(values @ values)
        written = {"sha256": sha256_of(beside), "bytes": beside.stat().st_size}
    return {"rows": count, **written, "sum": total, "sum_sq": squares, "count": count * frames * bins}


def _table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    fbanks = [row.fbank_TM.astype("<f2", copy=False).tobytes() for row in rows]
    columns: list[list[Any]] = [
        [row.clip_id for row in rows],
        [list(row.labels) for row in rows],
        [row.num_frames for row in rows],
        [_crc32(row.clip_id, row.labels, row.num_frames, fbank) for row, fbank in zip(rows, fbanks, strict=True)],
        fbanks,
    ]
    return pa.table([pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)], schema=schema)


def _crc32(clip_id: str, labels: Iterable[int], num_frames: int, fbank: bytes | memoryview) -> int:
    """CRC-32 of all that a row says: 0.06 ms for 256 KiB, where Parquet's page checksums cost 0.5 ms a random row."""
    head = json.dumps([clip_id, [int(label) for label in labels], int(num_frames)])
    return zlib.crc32(fbank, zlib.crc32(head.encode()))


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
        values = read_checked(path, "Index of the shards")
        try:
            found = from_dict(ShardIndex, values)
            _require_index(found)
        except UserError as error:
            raise DamagedError(f"{path} is not an index of shards: {error} Run prepare again.") from None
        return found

    def require_splits(self, splits: Sequence[str]) -> None:
        """UserError that names the available splits, if one is not there."""
        unknown = [split for split in splits if split not in self.splits]
        names = ", ".join(sorted(self.splits))
        require(not unknown, f"There is no split {', '.join(unknown)}; there are {names}. Name them in data.*-split.")

    def require_balance(self, splits: Sequence[str]) -> None:
        """DamagedError unless each listed clip of these splits is a row of a part, rejected, or missing."""
        for split in splits:
            books = self.splits[split]
            rows, kept = sum(part["rows"] for part in books["parts"]), books["kept"]
            if rows != kept or books["listed"] != kept + books["rejected"] + books["missing"]:
                raise DamagedError(
                    f"The books of {split} do not balance: {books['listed']} listed, {kept} kept in {rows} rows, "
                    f"{books['rejected']} rejected, {books['missing']} missing. Run prepare again."
                )

    def statistics(self, splits: Sequence[str]) -> tuple[float, float]:
        """Mean and standard deviation of raw log-mel over splits, padding included as in the published recipe."""
        self.require_splits(splits)
        total, squares, count = (sum(self.splits[split][key] for split in splits) for key in ("sum", "sum_sq", "count"))
        require(count > 0, f"The splits {', '.join(splits)} hold no clip to take statistics of.")
        require(math.isfinite(total + squares), f"The splits {', '.join(splits)} hold NaN or infinity: prepare again.")
        mean = total / count
        return mean, float(max(squares / count - mean**2, 1e-12) ** 0.5)


def _require_index(index: ShardIndex) -> None:
    """UserError, unless sizes, books and parts are such as `prepare` writes: paths and memory are made of them."""
    sizes = [index.front_end.get(key) for key in ("target_frames", "num_mel_bins")]
    require(all(_counts(size) and int(size or 0) in range(1, MOST_FRAMES + 1) for size in sizes), "it has no sizes.")
    for name, books in index.splits.items():
        require(isinstance(books, dict) and re.fullmatch(r"\w[\w.-]*", name) is not None, f"{name!a} is no split.")
        sums = [books.get(key) for key in ("sum", "sum_sq")]
        added = all(isinstance(value, float) or _counts(value) for value in sums)
        counts = [books.get(key) for key in ("listed", "kept", "rejected", "missing", "count")]
        require(added and all(map(_counts, counts)), f"the books and sums of {name} are not numbers.")
        parts = books.get("parts")
        require(isinstance(parts, list) and all(map(_is_part, parts)), f"the parts of {name} are not named.")


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < sys.maxsize


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and _counts(part.get("rows"))
        and isinstance(part.get("sha256"), str)
        and re.fullmatch(r"part-\d+\.parquet", str(part.get("name"))) is not None
    )


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
        found = _crc32(self.clip_ids[index], labels, self.num_frames_N[index], fbank_TM.data)
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
