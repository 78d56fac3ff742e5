"""Write the clip index of each split from the markers of its parts, so that no part has to be opened again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ast_core.errors import DamagedError
from ast_core.shards.clip_index import CLIP_INDEX, write_clip_index
from ast_core.shards.clip_table import SCHEMA, ClipTable, join_tables
from ast_core.shards.index import SplitCounts
from ast_core.shards.part_file import read_part, spread_offsets
from ast_core.shards.writer import ROW_GROUP
from ast_core.storage.atomic_files import remove_file
from ast_core.storage.json_files import read_hashed_json
from pipeline.ray_runtime.shard_part import ShardPart, utf8_name


def write_clip_indices(
    folder: Path, parts: Sequence[ShardPart], splits: dict[str, SplitCounts]
) -> dict[str, SplitCounts]:
    """Write `clips.arrow` of each split, and return the counts with the hashes of these files.

    A split has none if the marker of a part is one of an earlier version and the part is not on this node.

    Args:
        folder: folder of the shards.
        parts: all parts, complete.
        splits: their counts.

    Raises:
        UserError: a file cannot be written.
    """
    counts = {}
    for split, own in splits.items():
        path = folder / split / CLIP_INDEX
        tables = [_describe_clips(part) for part in parts if part.split == split]
        known = [table for table in tables if table is not None]
        sha256 = ""
        if len(known) == len(tables):
            sha256 = write_clip_index(path, join_tables(known, len(own.classes)))
        else:
            remove_file(path)
        counts[split] = dataclasses.replace(own, clip_index=sha256)
    return counts


def _describe_clips(part: ShardPart) -> ClipTable | None:
    """Return the clips of a part from its marker, or else from the part; None if this node does not have the part."""
    marker = read_hashed_json(part.marker, "Marker of a shard")
    front_end, classes = part.metadata.front_end, len(part.metadata.labels)
    shape, path = (front_end.target_frames, front_end.num_mel_bins), part.marker.with_suffix(".parquet")
    if "group_offsets" in marker:
        return _read_marker(part, marker, shape, classes)
    return read_part(path, marker["rows"], shape, classes) if path.is_file() else None


def _read_marker(part: ShardPart, marker: dict[str, Any], shape: tuple[int, int], classes: int) -> ClipTable:
    """Return the clips that a marker describes; DamagedError if it does not fit the part's clips."""
    rejected = {reject["clip_id"] for reject in marker["rejects"]}
    named = [(utf8_name(clip.clip_id), clip.labels) for clip in part.clips]
    kept = [(name, labels) for name, labels in named if name not in rejected]
    rows = marker["rows"]
    counts = [min(ROW_GROUP, rows - first) for first in range(0, rows, ROW_GROUP)]
    lists = (kept, marker["num_frames"], marker["crc32"])
    if any(len(own) != rows for own in lists) or len(counts) != len(marker["group_offsets"]):
        raise DamagedError(f"{part.marker} does not fit the clips of its part. Remove it and run prepare again.")
    ends = list(accumulate((len(labels) for _, labels in kept), initial=0))
    values = [label for _, labels in kept for label in labels]
    columns: list[Any] = [
        pa.array([name for name, _ in kept], pa.large_string()),
        pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values, pa.int32())),
        pa.array(marker["num_frames"], pa.int32()),
        pa.array(marker["crc32"], pa.uint32()),
        pa.array(spread_offsets(marker["group_offsets"], counts, 2 * int(np.prod(shape)))),
    ]
    return ClipTable.from_arrow(pa.record_batch(columns, schema=SCHEMA), classes)
