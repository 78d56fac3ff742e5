"""Pack recordings into Parquet files and tar archives, and list them as clips by hand."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.dataset.clips import Clip

GROUP = 7
"""Rows of a row group of the Parquet files."""


def write_parquet(
    path: Path, contents: Sequence[bytes | None], in_struct: bool = True, **options: object
) -> list[Clip]:
    """Write recordings to a Parquet file; return its clips."""
    cells = [content and {"bytes": content, "path": "x.wav"} for content in contents] if in_struct else contents
    kind = pa.struct([("path", pa.string()), ("bytes", pa.binary())]) if in_struct else pa.binary()
    names = [f"clip-{number}" for number in range(len(contents))]
    table = pa.table({"id": names, "audio": pa.array(cells, kind)})
    pq.write_table(table, path, **{"row_group_size": GROUP, **options})
    return [Clip(name, str(path), (), "train", member=divmod(row, GROUP)) for row, name in enumerate(names)]


def write_tar(path: Path, contents: Sequence[bytes]) -> list[Clip]:
    """Write recordings and a text next to each to a tar archive; return its clips."""
    with tarfile.open(path, "w") as archive:
        for number, content in enumerate(contents):
            for suffix, data in (("flac", content), ("txt", b"a label")):
                info = tarfile.TarInfo(f"clip-{number}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as archive:
        infos = [info for info in archive if info.name.endswith("flac")]
    return [Clip(info.name, str(path), (), "train", member=(info.offset_data, info.size)) for info in infos]


def as_uris(clips: Sequence[Clip]) -> list[Clip]:
    """Return clips whose local paths became URIs."""
    return [dataclasses.replace(clip, path=f"file://{clip.path}") for clip in clips]


def like(clips: Sequence[Clip], packed: Sequence[Clip]) -> tuple[Clip, ...]:
    """Return clips with the paths and members of packed ones."""
    return tuple(
        dataclasses.replace(clip, path=other.path, member=other.member)
        for clip, other in zip(clips, packed, strict=True)
    )
