"""A part of the shards, the unit of `prepare`: its clips, the settings that decide its bytes, and whether it exists.

`part_writer` writes it. Both are apart from `prepare`, whose imports would cost each worker seconds of start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_core.audio.decoder import LIMIT_S
from ast_core.config import FrontEndConfig
from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.source_state import read_states, relative_path
from ast_core.errors import DamagedError
from ast_core.serialization import from_dict, to_dict
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import parse_hashed_json, read_hashed_json, sha256_of_json
from ast_core.storage.object_store import ObjectStore, StoredFile

FORMAT = 1
"""Number in every shard's key: raise it when the same clips and settings would make other shards."""


@dataclass(frozen=True)
class ShardMetadata:
    """Front end and labels, which give the filterbanks their meaning; each Parquet file stores them."""

    front_end: FrontEndConfig
    labels: tuple[str, ...]
    """Names of the classes, in index order."""
    single_label: bool
    """Whether every clip has exactly one label."""


@dataclass(frozen=True)
class ShardPart:
    """Some clips that become one Parquet file, with everything that decides its bytes."""

    folder: str
    name: str
    split: str
    clips: tuple[Clip, ...]
    source: str
    """Folder or URI to which the clips' paths in the key are relative."""
    metadata: ShardMetadata
    decode_limit_s: float = LIMIT_S
    """Seconds that a decoder may take for a clip; they decide no bytes."""
    audio_column: str = ""
    """Column of the recordings in Parquet files; "" for other recordings."""
    device: str = "cpu"
    """Device that computes the filterbanks: `cpu`, or `cuda`, whose results differ in the last bits."""

    @property
    def marker(self) -> Path:
        """Path of the marker, which is committed after the Parquet file."""
        return Path(self.folder) / f"{self.name}.json"

    def packed(self) -> str:
        """Return the part as JSON."""
        clips: list[list[Any]] = []
        before = ""
        for c in self.clips:
            path = None if c.member and c.path == before else c.path  # a container's path is written once
            clips.append([c.clip_id, path, c.labels, c.split, c.start_s, c.end_s, *([c.member] if c.member else [])])
            before = c.path
        return json.dumps({**vars(self), "clips": clips, "metadata": to_dict(self.metadata)})

    @staticmethod
    def unpacked(text: str) -> ShardPart:
        """Return the part of which `packed` made JSON."""
        values = json.loads(text)
        clips: list[Clip] = []
        before = ""
        for name, path, labels, split, start_s, end_s, *rest in values["clips"]:
            before = before if path is None else path
            member = (rest[0][0], rest[0][1]) if rest else None
            clips.append(Clip(name, before, tuple(labels), split, start_s, end_s, member=member))
        return ShardPart(**{**values, "clips": tuple(clips), "metadata": from_dict(ShardMetadata, values["metadata"])})

    def key(self) -> str:
        """Return a hash of the clips, their files' present sizes and times, the labels and the front end.

        Raises:
            UserError: the store of the recordings does not answer.
        """
        states = read_states(clip.path for clip in self.clips if clip.path)
        clips = [_fingerprint(clip, self.source, states) for clip in self.clips]
        # Parts of loose files that a CPU made keep the keys that they had before there was anything else.
        more = {"audio_column": self.audio_column} if self.audio_column else {}
        more |= {"device": self.device} if self.device != "cpu" else {}
        return sha256_of_json({"format": FORMAT, "clips": clips, "metadata": to_dict(self.metadata), **more})


def is_complete(part: ShardPart) -> bool:
    """Return whether the part exists, is complete, and was made of these clips and settings."""
    path = part.marker.with_suffix(".parquet")
    if not (part.marker.is_file() and path.is_file()):
        return False
    try:
        marker = read_hashed_json(part.marker, "Marker of a shard")
        return bool(marker["key"] == part.key() and marker["sha256"] == sha256_of(path))
    except (DamagedError, KeyError, TypeError):
        return False


def is_complete_in_store(part: ShardPart, store: ObjectStore, listed: Mapping[Path, StoredFile]) -> bool:
    """Return whether a part is complete in the store. A local copy that differs from the store's part is removed.

    Args:
        part: part of shards that are a working copy of the store.
        store: the store.
        listed: the store's files of the shards.
    """
    path = part.marker.with_suffix(".parquet")
    if not {path, part.marker} <= listed.keys():
        return False
    try:
        marker = parse_hashed_json(store.read(part.marker) or b"", store.uri_of(part.marker))
        whole = bool(marker["key"] == part.key() and marker["bytes"] == listed[path].size)
        if whole and path.is_file() and sha256_of(path) != marker["sha256"]:
            path.unlink()  # the next reader downloads the store's
    except (DamagedError, KeyError):
        return False
    return whole


def _fingerprint(clip: Clip, source: str, states: Mapping[str, list[Any]]) -> list[Any]:
    """Return what of a clip decides its shard: data sets that are moved keep their shards, changed files do not."""
    if not clip.path:
        return [clip.clip_id, list(clip.labels)]
    times = [clip.start_s, clip.end_s] if clip.is_segment else []  # complete recordings keep the keys they had
    member = [list(clip.member)] if clip.member else []
    return [clip.clip_id, list(clip.labels), relative_path(clip.path, source), *states[clip.path], *times, *member]


@dataclass(frozen=True)
class PartTask:
    """A part for a worker to write."""

    part: ShardPart
    stores: tuple[ObjectStore, ...]
    """Stores of which the node's folders become working copies."""
    watch: str
    """Name of the driver's `LivenessWatch`."""

    def to_row(self) -> dict[str, str]:
        """Return the task as a row of a Ray data set; JSON, which Ray Data carries without pickling."""
        stores = [[str(store.root), store.uri] for store in self.stores]
        return {"part": self.part.packed(), "stores": json.dumps(stores), "watch": self.watch}

    @staticmethod
    def from_row(row: dict[str, str]) -> PartTask:
        """Return the task of which `to_row` made a row."""
        stores = tuple(ObjectStore(Path(root), uri) for root, uri in json.loads(row["stores"]))
        return PartTask(ShardPart.unpacked(row["part"]), stores, row["watch"])


@dataclass(frozen=True)
class PartResult:
    """Clips of a part that was written, by what became of them."""

    clips: int = 0
    """All clips that the part lists."""
    missing: int = 0
    rejected: int = 0
    error: str = ""
    """Sentence for the user if the part could not be written: Ray Data does not keep the type of an exception."""


def utf8_name(name: str) -> str:
    """Return a file's name as Parquet can store it: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
