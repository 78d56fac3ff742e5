"""A part of the shards, the unit of `prepare`: its clips, the settings that decide its bytes, and how it is written.

It is apart from `prepare`, whose imports would cost each worker seconds of start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ast_core.audio.decoder import LIMIT_S, Decoder
from ast_core.audio.fbank import Fbank, fit_length
from ast_core.audio.segments import SegmentReader
from ast_core.config import FrontEndConfig
from ast_core.dataset.manifest import Clip
from ast_core.errors import ClipError, DamagedError, UserError
from ast_core.serialization import from_dict, to_dict
from ast_core.shards.writer import Row, write_part
from ast_core.storage.atomic_files import remove_file, sha256_of
from ast_core.storage.json_files import parse_hashed_json, read_hashed_json, sha256_of_json, write_hashed_json
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
    """Folder to which the clips' paths in the key are relative."""
    metadata: ShardMetadata
    decode_limit_s: float = LIMIT_S
    """Seconds that a decoder may take for a clip; they decide no bytes."""

    @property
    def marker(self) -> Path:
        """Path of the marker, which is committed after the Parquet file."""
        return Path(self.folder) / f"{self.name}.json"

    def packed(self) -> str:
        """Return the part as JSON."""
        clips = [[c.clip_id, c.path, c.labels, c.split, c.start_s, c.end_s] for c in self.clips]
        return json.dumps({**vars(self), "clips": clips, "metadata": to_dict(self.metadata)})

    @staticmethod
    def unpacked(text: str) -> ShardPart:
        """Return the part of which `packed` made JSON."""
        values = json.loads(text)
        clips = tuple(
            Clip(name, path, tuple(labels), split, start_s=start_s, end_s=end_s)
            for name, path, labels, split, start_s, end_s in values["clips"]
        )
        return ShardPart(**{**values, "clips": clips, "metadata": from_dict(ShardMetadata, values["metadata"])})

    def key(self) -> str:
        """Return a hash of the clips, their files' present sizes and times, the labels and the front end."""
        clips = [_fingerprint(clip, self.source) for clip in self.clips]
        return sha256_of_json({"format": FORMAT, "clips": clips, "metadata": to_dict(self.metadata)})


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


def _fingerprint(clip: Clip, source: str) -> list[Any]:
    """Return what of a clip decides its shard: data sets that are moved keep their shards, changed files do not."""
    if not clip.path:
        return [clip.clip_id, list(clip.labels)]
    try:
        status = Path(clip.path).stat()
        seen = [status.st_size, status.st_mtime_ns, os.access(clip.path, os.R_OK)]
    except OSError as error:
        seen = [error.errno or 0]
    times = [clip.start_s, clip.end_s] if clip.is_segment else []  # complete recordings keep the keys they had
    return [clip.clip_id, list(clip.labels), os.path.relpath(clip.path, source), *seen, *times]


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


def write_part_row(row: dict[str, str]) -> dict[str, Any]:
    """Write a part in a worker of Ray Data; return the fields of a `PartResult`."""
    from pipeline.ray_runtime.heartbeat import send_heartbeats  # noqa: PLC0415  # Ray is loaded only where this runs

    task = PartTask.from_row(row)
    try:
        with send_heartbeats(task.watch, f"{task.part.split}/{task.part.name}"):
            for store in task.stores:
                store.attach()
            rejects = write_shard_part(task.part)
    except UserError as error:
        return vars(PartResult(error=str(error)))
    missing = sum(reject["stage"] == "missing" for reject in rejects)
    return vars(PartResult(len(task.part.clips), missing, len(rejects) - missing))


def write_shard_part(part: ShardPart) -> list[dict[str, str]]:
    """Decode the clips of one part, and commit their filterbanks, its marker last. A broken clip becomes a reject.

    If the files change meanwhile (a mount is lost, a download still runs), the marker has no key, and the next run
    makes the part again.

    Returns:
        The rejects.

    Raises:
        UserError: a file cannot be read or the shard cannot be written, because of the disk.
    """
    torch.set_num_threads(1)
    config = part.metadata.front_end
    rejects: list[dict[str, str]] = []
    path = part.marker.with_suffix(".parquet")
    key = part.key()
    try:
        remove_file(part.marker)
        rows, files = _rows(part, config, rejects), sum(bool(clip.path) for clip in part.clips)
        written = write_part(path, rows, to_dict(part.metadata), config.target_frames, config.num_mel_bins, files)
        key = key if key == part.key() else ""
        write_hashed_json(part.marker, {**to_dict(written), "key": key, "rejects": rejects, "listed": len(part.clips)})
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error}. Fix this and run again; finished shards stay."
        ) from error
    return rejects


def _rows(part: ShardPart, config: FrontEndConfig, rejects: list[dict[str, str]]) -> Iterator[Row]:
    for clip, found in read_fbanks(part.clips, config, _decoder(part.decode_limit_s)):
        if isinstance(found, ClipError):
            entry = {"clip_id": utf8_name(clip.clip_id), "split": part.split, "path": utf8_name(clip.path)}
            rejects.append({**entry, "stage": found.stage, "reason": found.reason})
        elif isinstance(found, OSError):
            raise UserError(f"{clip.path} could not be read: {found}. Fix the disk or mount and run again.") from found
        else:
            fitted_TM = fit_length(found, config.target_frames).half().numpy()
            yield Row(utf8_name(clip.clip_id), clip.labels, len(found), fitted_TM)


def read_fbanks(
    clips: Sequence[Clip], config: FrontEndConfig, decoder: Decoder
) -> Iterator[tuple[Clip, torch.Tensor | ClipError | OSError]]:
    """Yield each clip with its log-mel [T, M], before it is padded or cut.

    Instead of the log-mel, a `ClipError` says why a clip cannot be used, and an `OSError` is the fault of the disk or
    the system. Segments of one recording that follow each other are read in one pass.
    """
    # Samples past the last frame that is kept are not decoded: ten-hour files cost no more than ten-second ones.
    seconds = (config.target_frames * config.frame_shift_ms + config.frame_length_ms) / 1000
    segments = SegmentReader(decoder, config.sample_rate_hz, _segment_limits(clips, seconds))
    for clip in clips:
        try:
            if not clip.path:
                raise ClipError("missing", "listed, but there is no file")
            if clip.is_segment:
                waveform = segments.load(clip.path, clip.start_s, clip.end_s, seconds)
            else:
                segments.close()
                waveform = decoder.load(clip.path, config.sample_rate_hz, seconds)
            found: torch.Tensor | ClipError | OSError = _front_end(config)(torch.from_numpy(waveform))
        except (ClipError, OSError) as error:
            found = error
        yield clip, found
    segments.close()


def _segment_limits(clips: Sequence[Clip], seconds: float) -> dict[str, float]:
    """Return how many seconds of each recording its segments need."""
    limits: dict[str, float] = {}
    for clip in clips:
        if clip.is_segment:
            end_s = clip.start_s + seconds if clip.end_s is None else clip.end_s
            limits[clip.path] = max(limits.get(clip.path, 0.0), end_s)
    return limits


def utf8_name(name: str) -> str:
    """Return a file's name as Parquet can store it: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@cache
def _decoder(limit_s: float) -> Decoder:
    """Return this worker's decoder, which serves all its parts."""
    return Decoder(limit_s)


@cache
def _front_end(config: FrontEndConfig) -> Fbank:
    return Fbank(config)
