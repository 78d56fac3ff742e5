"""Opening shards as version 0.1 did: every part, ids as Python strings, labels as a dense matrix of bytes."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.shards.index import ShardIndex
from ast_core.shards.part_file import find_filterbanks, spread_offsets


@dataclass
class DenseClips:
    """What the earlier reader kept of N clips of C classes."""

    labels_NC: np.ndarray
    num_frames_N: np.ndarray
    crc32_N: np.ndarray
    offset_N: np.ndarray
    ids: list[str] = field(default_factory=list)
    files: list[np.memmap] = field(default_factory=list)


def open_dense(folder: Path, split: str) -> DenseClips:
    """Open all parts of a split."""
    index = ShardIndex.load(folder)
    own, shape = index.splits[split], (index.front_end["target_frames"], index.front_end["num_mel_bins"])
    numbers = (np.zeros(own.rows, kind) for kind in (np.int32, np.uint32, np.int64))
    clips = DenseClips(np.zeros((own.rows, len(index.labels)), np.uint8), *numbers)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(own.parts) + 1024, hard))
    for part in own.parts:
        _open_part(clips, folder / split / part.name, part.rows, 2 * shape[0] * shape[1])
    return clips


def _open_part(clips: DenseClips, path: Path, rows: int, size: int) -> None:
    """Open a part and read its small columns."""
    file = pq.ParquetFile(path, memory_map=True)
    if file.metadata.num_rows != rows or pa.field("fbank", pa.binary(size)) not in list(file.schema_arrow):
        raise ValueError(f"{path} is not the part that was written")
    place = slice(len(clips.ids), len(clips.ids) + rows)
    counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    clips.offset_N[place] = spread_offsets(find_filterbanks(file, size), counts, size)
    table = file.read(columns=["clip_id", "labels", "num_frames", "crc32"]).to_pydict()
    clips.num_frames_N[place] = table["num_frames"]
    clips.crc32_N[place] = table["crc32"]
    for row, labels in enumerate(table["labels"], place.start):
        clips.labels_NC[row, labels] = 1
    clips.ids += table["clip_id"]
    clips.files.append(np.memmap(path, np.uint8, "r"))
