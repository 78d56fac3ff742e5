"""A part of the shards, the unit of `prepare`: which clips, what decides its bytes, and how a worker writes it.

Apart from `prepare`, whose imports would cost each worker seconds of start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ast_core.audio.decoder import LIMIT_S, Decoder
from ast_core.audio.fbank import Fbank, fit_length
from ast_core.config import FrontEndConfig
from ast_core.dataset.manifest import Clip
from ast_core.errors import ClipError, DamagedError, UserError
from ast_core.serialization import from_dict, to_dict
from ast_core.shards.writer import Row, write_part
from ast_core.storage.atomic_files import remove_file, sha256_of
from ast_core.storage.json_files import parse_hashed_json, read_hashed_json, sha256_of_json, write_hashed_json
from ast_core.storage.object_store import ObjectStore, StoredFile

FORMAT = 1
"""Part of every shard's key: raise it when the same clips and settings would give other shards."""


@dataclass(frozen=True)
class ShardPart:
    """The unit of work: some clips that become one Parquet file. It knows all that decides its bytes."""

    folder: str
    name: str
    split: str
    clips: tuple[Clip, ...]
    source: str
    """Root of the clips' paths in the key."""
    front_end: dict[str, Any]
    metadata: dict[str, Any]
    """Front end and labels, as the Parquet file keeps them."""
    decode_limit_s: float = LIMIT_S
    """What a decoder may take for an answer; it decides no bytes."""

    @property
    def marker(self) -> Path:
        """Committed after the Parquet file."""
        return Path(self.folder) / f"{self.name}.json"

    def packed(self) -> str:
        """As JSON, which Ray Data carries as it is."""
        clips = [[clip.clip_id, clip.path, clip.labels, clip.split] for clip in self.clips]
        return json.dumps({**vars(self), "clips": clips})

    @staticmethod
    def unpacked(text: str) -> ShardPart:
        """The part that `packed` wrote."""
        values = json.loads(text)
        clips = tuple(Clip(name, path, tuple(labels), split) for name, path, labels, split in values["clips"])
        return ShardPart(**{**values, "clips": clips})

    def key(self) -> str:
        """Hash of the clips, their files' sizes and times as they are now, the labels and the front end."""
        clips = [_fingerprint(clip, self.source) for clip in self.clips]
        return sha256_of_json({"format": FORMAT, "clips": clips, "metadata": self.metadata})


def is_complete(part: ShardPart) -> bool:
    """Whether the part is there, whole, and made of just these clips and settings."""
    path = part.marker.with_suffix(".parquet")
    if not (part.marker.is_file() and path.is_file()):
        return False
    try:
        marker = read_hashed_json(part.marker, "Marker of a shard")
        return bool(marker["key"] == part.key() and marker["sha256"] == sha256_of(path))
    except (DamagedError, KeyError, TypeError):
        return False


def is_complete_in_store(part: ShardPart, store: ObjectStore, listed: Mapping[Path, StoredFile]) -> bool:
    """As `is_done`, of a part that may be in the store alone; a copy here that is not the store's part goes.

    Args:
        part: of shards that are a working copy.
        store: of which.
        listed: what the store has of the shards.
    """
    path = part.marker.with_suffix(".parquet")
    if not {path, part.marker} <= listed.keys():
        return False
    try:
        marker = parse_hashed_json(store.read(part.marker) or b"", store.uri_of(part.marker))
        whole = bool(marker["key"] == part.key() and marker["bytes"] == listed[path].size)
        if whole and path.is_file() and sha256_of(path) != marker["sha256"]:
            path.unlink()  # whoever reads it fetches the store's
    except (DamagedError, KeyError):
        return False
    return whole


def _fingerprint(clip: Clip, source: str) -> list[Any]:
    """A clip as far as it decides a shard: moved data sets keep their shards, changed files do not."""
    if not clip.path:
        return [clip.clip_id, list(clip.labels)]
    try:
        status = Path(clip.path).stat()
        seen = [status.st_size, status.st_mtime_ns, os.access(clip.path, os.R_OK)]
    except OSError as error:
        seen = [error.errno or 0]
    return [clip.clip_id, list(clip.labels), os.path.relpath(clip.path, source), *seen]


def write_part_row(row: dict[str, Any]) -> dict[str, Any]:
    """Write a part in a worker. What the user must mend comes back as a value: Ray Data keeps no exception's type."""
    from pipeline.ray_runtime import heartbeat  # noqa: PLC0415  # Ray is there only where this runs

    try:
        for root, uri in json.loads(row["stores"]):
            ObjectStore(Path(root), uri).attach()
        part = ShardPart.unpacked(row["part"])
        with heartbeat.working(row["watch"], f"{part.split}/{part.name}"):
            rejects = write_shard_part(part)
    except UserError as error:
        return {"clips": 0, "missing": 0, "rejected": 0, "error": str(error)}
    missing = sum(reject["stage"] == "missing" for reject in rejects)
    return {"clips": row["clips"], "missing": missing, "rejected": len(rejects) - missing, "error": ""}


def write_shard_part(part: ShardPart) -> list[dict[str, str]]:
    """Decode, filter and commit one part, its marker last. A broken clip is a row among its rejects.

    The marker's key is that of the files before and after; where they changed meanwhile, of none: the next run redoes
    the part, so nothing that a lost mount or a running download did to it stays.

    Returns:
        The rejects.

    Raises:
        UserError: a disk's fault: a file cannot be read or the shard cannot be written.
    """
    torch.set_num_threads(1)
    config = from_dict(FrontEndConfig, part.front_end)
    rejects: list[dict[str, str]] = []
    path = part.marker.with_suffix(".parquet")
    key = part.key()
    try:
        remove_file(part.marker)
        rows, files = _rows(part, config, rejects), sum(bool(clip.path) for clip in part.clips)
        written = write_part(path, rows, part.metadata, config.target_frames, config.num_mel_bins, files)
        key = key if key == part.key() else ""
        write_hashed_json(part.marker, {**to_dict(written), "key": key, "rejects": rejects, "listed": len(part.clips)})
    except OSError as error:
        raise UserError(f"{path} could not be made: {error}. Mend that and run again; finished shards stay.") from error
    return rejects


def _rows(part: ShardPart, config: FrontEndConfig, rejects: list[dict[str, str]]) -> Iterator[Row]:
    fbank, decoder = _front_end(config), _decoder(part.decode_limit_s)
    # Samples past the last frame that is kept are not decoded: ten-hour files cost no more than ten-second ones.
    seconds = (config.target_frames * config.frame_shift_ms + config.frame_length_ms) / 1000
    for clip in part.clips:
        try:
            if not clip.path:
                raise ClipError("missing", "listed, but there is no file")
            fbank_TM = fbank(torch.from_numpy(decoder.load(clip.path, config.sample_rate_hz, seconds)))
        except ClipError as error:
            entry = {"clip_id": _utf8(clip.clip_id), "split": part.split, "path": _utf8(clip.path)}
            rejects.append({**entry, "stage": error.stage, "reason": error.reason})
        except OSError as error:
            raise UserError(f"{clip.path} could not be read: {error}. Mend the disk or mount and run again.") from error
        else:
            fitted_TM = fit_length(fbank_TM, config.target_frames).half().numpy()
            yield Row(_utf8(clip.clip_id), clip.labels, len(fbank_TM), fitted_TM)


def _utf8(name: str) -> str:
    """A file's name as Parquet can hold it: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@cache
def _decoder(limit_s: float) -> Decoder:
    """Of this worker, for all its parts."""
    return Decoder(limit_s)


@cache
def _front_end(config: FrontEndConfig) -> Fbank:
    return Fbank(config)
