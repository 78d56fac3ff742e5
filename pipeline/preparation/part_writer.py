"""Write a part of the shards: read its clips, decode them, compute their filterbanks, and commit file and marker.

`part_stream` says which of it runs where.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from ast_core.audio.decoder import Decoder
from ast_core.audio.fbank import Fbank, fit_length
from ast_core.audio.segments import SegmentReader
from ast_core.audio.waveform import Waveform
from ast_core.config import FrontEndConfig
from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.clip_contents import Content, describe_recording, read_contents, recording_of
from ast_core.errors import ClipError, UserError
from ast_core.serialization import to_dict
from ast_core.shards.writer import Row, write_part
from ast_core.storage.atomic_files import remove_file
from ast_core.storage.file_systems import is_uri
from ast_core.storage.json_files import write_hashed_json
from pipeline.ray_runtime.shard_part import PartResult, PartTask, ShardPart, utf8_name

GPU_BATCH = 32
"""Number of clips of equal length whose filterbanks a GPU computes at a time."""
Found = Waveform | ClipError | OSError
"""Waveform of a clip, or why it cannot be used: the fault of the clip, or of the disk or store."""


def write_part_row(row: dict[str, str]) -> dict[str, Any]:
    """Write a part in a worker of Ray Data; return the fields of a `PartResult`."""
    return report_part(PartTask.from_row(row), write_shard_part)


def report_part(task: PartTask, write: Callable[[ShardPart], list[dict[str, str]]]) -> dict[str, Any]:
    """Write a part by a function that returns its rejects; return the fields of a `PartResult`."""
    from pipeline.ray_runtime.heartbeat import send_heartbeats  # noqa: PLC0415  # Ray is loaded only where this runs

    try:
        with send_heartbeats(task.watch, f"{task.part.split}/{task.part.name}"):
            for store in task.stores:
                store.attach()
            rejects = write(task.part)
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
        UserError: a file cannot be read or the shard cannot be written, because of the disk or the store.
    """
    key = part.key()
    return commit_part(part, _read_part(part), lambda: key if key == part.key() else "")


def read_part(part: ShardPart) -> tuple[str, list[tuple[Clip, Found]]]:
    """Return a part's key, "" if its files changed while they were read, and its clips with their waveforms or faults.

    Raises:
        UserError: a file cannot be read, because of the disk or the store.
    """
    key = part.key()
    pairs: list[tuple[Clip, Found]] = []
    for clip, found in _read_part(part):
        if isinstance(found, OSError):
            raise _explain_unreadable(part, clip, found) from found
        pairs.append((clip, found))
    return key if key == part.key() else "", pairs


def _read_part(part: ShardPart) -> Iterator[tuple[Clip, Found]]:
    return read_waveforms(part.clips, part.metadata.front_end, _decoder(part.decode_limit_s), part.audio_column)


def commit_part(
    part: ShardPart, waveforms: Iterable[tuple[Clip, Found]], key: Callable[[], str]
) -> list[dict[str, str]]:
    """Compute the filterbanks of a part and commit them, the marker last; return the rejects.

    Args:
        part: part to write.
        waveforms: its clips in order, each with its waveform or fault.
        key: function that is called after the last waveform and returns the part's key; "" if its files changed.

    Raises:
        UserError: a file could not be read or the shard cannot be written, because of the disk or the store.
    """
    torch.set_num_threads(1)
    config = part.metadata.front_end
    rejects: list[dict[str, str]] = []
    path = part.marker.with_suffix(".parquet")
    try:
        remove_file(part.marker)
        rows, files = _rows(part, waveforms, rejects), sum(bool(clip.path) for clip in part.clips)
        written = write_part(path, rows, to_dict(part.metadata), config.target_frames, config.num_mel_bins, files)
        marker = {**to_dict(written), "key": key(), "rejects": rejects, "listed": len(part.clips)}
        write_hashed_json(part.marker, marker | ({"device": part.device} if part.device != "cpu" else {}))
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error}. Fix this and run again; finished shards stay."
        ) from error
    return rejects


def _rows(part: ShardPart, waveforms: Iterable[tuple[Clip, Found]], rejects: list[dict[str, str]]) -> Iterator[Row]:
    frames = part.metadata.front_end.target_frames
    for clip, found in compute_fbanks(waveforms, part.metadata.front_end, part.device):
        if isinstance(found, ClipError):
            place = describe_recording(clip, part.audio_column)
            entry = {"clip_id": utf8_name(clip.clip_id), "split": part.split, "path": utf8_name(place)}
            rejects.append({**entry, "stage": found.stage, "reason": found.reason})
        elif isinstance(found, OSError):
            raise _explain_unreadable(part, clip, found) from found
        else:
            fitted_TM = fit_length(found, frames).half().cpu().numpy()
            yield Row(utf8_name(clip.clip_id), clip.labels, len(found), fitted_TM)


def _explain_unreadable(part: ShardPart, clip: Clip, error: OSError) -> UserError:
    cause = "file, disk or store" if clip.member or is_uri(clip.path) else "disk or mount"
    place = describe_recording(clip, part.audio_column)
    return UserError(f"{place} could not be read: {error}. Fix the {cause} and run again.")


def compute_fbanks(
    waveforms: Iterable[tuple[Clip, Found]], config: FrontEndConfig, device: str = "cpu"
) -> Iterator[tuple[Clip, torch.Tensor | ClipError | OSError]]:
    """Yield each clip with the log-mel [T, M] of its waveform, or with its fault; a GPU gets several clips at once."""
    front_end = _front_end(config, device)
    for _, run in itertools.groupby(waveforms, lambda pair: len(pair[1]) if isinstance(pair[1], np.ndarray) else -1):
        while batch := list(itertools.islice(run, 1 if device == "cpu" else GPU_BATCH)):
            samples = [found for _, found in batch if isinstance(found, np.ndarray)]
            if not samples:
                yield from ((clip, found) for clip, found in batch if not isinstance(found, np.ndarray))
                continue
            try:
                wave_BN = samples[0][None] if len(samples) == 1 else np.stack(samples)
                fbanks: Iterable[torch.Tensor | ClipError] = front_end(torch.from_numpy(wave_BN))
            except ClipError as error:
                fbanks = [error] * len(batch)
            yield from ((clip, fbank) for (clip, _), fbank in zip(batch, fbanks, strict=True))


def read_waveforms(
    clips: Sequence[Clip], config: FrontEndConfig, decoder: Decoder, audio_column: str = ""
) -> Iterator[tuple[Clip, Found]]:
    """Yield each clip with its samples as `decode_contents` does, wherever its recording is."""
    return decode_contents(clips, read_contents(clips, audio_column), config, decoder)


def decode_contents(
    clips: Sequence[Clip], contents: Iterable[tuple[Clip, Content]], config: FrontEndConfig, decoder: Decoder
) -> Iterator[tuple[Clip, Found]]:
    """Yield each clip with its samples, as many as its filterbank needs.

    Instead of the samples, a `ClipError` says why a clip cannot be used, and an `OSError` is the fault of the disk, the
    store or the system. Segments of one recording that follow each other are read in one pass.

    Args:
        clips: clips in their order.
        contents: the same clips with their recordings, from `read_contents`.
        config: front end.
        decoder: decoder that reads nothing else meanwhile.
    """
    # Samples past the last frame that is kept are not decoded: ten-hour files cost no more than ten-second ones.
    seconds = (config.target_frames * config.frame_shift_ms + config.frame_length_ms) / 1000
    segments = SegmentReader(decoder, config.sample_rate_hz, _segment_limits(clips, seconds))
    for clip, content in contents:
        found: Found
        try:
            if isinstance(content, ClipError | OSError):
                found = content
            elif clip.is_segment:
                found = segments.load(content, clip.start_s, clip.end_s, seconds, recording_of(clip))
            else:
                segments.close()
                found = decoder.load(content, config.sample_rate_hz, seconds)
        except (ClipError, OSError) as error:
            found = error
        yield clip, found
    segments.close()


def _segment_limits(clips: Sequence[Clip], seconds: float) -> dict[Any, float]:
    """Return how many seconds of each recording its segments need."""
    limits: dict[Any, float] = {}
    for clip in clips:
        if clip.is_segment:
            end_s = clip.start_s + seconds if clip.end_s is None else clip.end_s
            name = recording_of(clip)
            limits[name] = max(limits.get(name, 0.0), end_s)
    return limits


@cache
def _decoder(limit_s: float) -> Decoder:
    """Return this worker's decoder, which serves all its parts."""
    return Decoder(limit_s)


@cache
def _front_end(config: FrontEndConfig, device: str) -> Fbank:
    return Fbank(config, device)
