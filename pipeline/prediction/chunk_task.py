"""What a worker makes of chunks of recordings: the parts that `predict` and `embed` share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.clip_contents import Content, read_contents, recording_of
from ast_core.errors import ClipError, UserError
from ast_core.evaluation.recording_batches import RecordingBatches, Segment, Source
from ast_core.weights.bundle import Bundle
from pipeline.prediction.recording_chunks import Chunk, ChunkResult

FEW = 64
"""Recordings below which this process runs the model: Ray would take longer to start."""
MOST_DECODERS = 4
"""Decoders of this process at most, one a core."""
PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


class ChunkRunner(Protocol):
    """A model on its device with its decoders; a context that ends the decoders."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the decoders."""

    def run_chunk(self, chunk: Chunk) -> Iterator[ChunkResult]:
        """Yield the rows of a chunk; a `UserError` says that the disk or the store cannot be read."""


class ChunkTask(Protocol):
    """What to make of each recording; workers get it by pickle."""

    @property
    def stage(self) -> str:
        """Name of the stage, for messages."""

    def open(self, bundle: Bundle, device: str, decoders: int, mixed: bool) -> ChunkRunner:
        """Return the runner of one process.

        Args:
            bundle: bundle to use.
            device: `cpu` or `cuda`.
            decoders: recordings that are decoded at the same time.
            mixed: whether a batch may hold windows of several recordings, as `RecordingBatches` says.
        """


def run_recordings(
    batches: RecordingBatches[PartT, ResultT], chunk: Chunk, audio_column: str = ""
) -> Iterator[tuple[Clip, ResultT | ClipError]]:
    """Yield each recording of a chunk with its result, or with the error for which it is refused.

    Args:
        batches: model and decoders.
        chunk: recordings.
        audio_column: column of the recordings in Parquet files; "" finds it.

    Raises:
        UserError: a recording cannot be read, because of the disk or the store.
    """
    for clip, found in batches.run(_read_sources(chunk.clips, audio_column)):
        if isinstance(found, OSError):
            raise UserError(
                f"{clip.clip_id} could not be read: {found.strerror or found}. Fix the disk, mount or store and run "
                "the same command again; rows that were written stay."
            ) from found
        yield clip, found


def choose_decoders(chunks: Sequence[bytes]) -> int:
    """Return the number of decoders of this process for packed chunks."""
    most = min(MOST_DECODERS, os.cpu_count() or 1)
    return 1 if len(chunks) == 1 and len(Chunk.unpack(chunks[0]).clips) <= most else most


def _read_sources(clips: Sequence[Clip], audio_column: str) -> Iterator[tuple[Clip, Source]]:
    """Yield each clip with its recording, or with its part of one."""
    limits: dict[object, float | None] = {}
    for clip in clips:
        if clip.is_segment:
            known, name = limits.get(recording_of(clip), 0.0), recording_of(clip)
            limits[name] = None if known is None or clip.end_s is None else max(known, clip.end_s)
    contents: Iterator[tuple[Clip, Content]] = read_contents(clips, audio_column)
    for clip, content in contents:
        if clip.is_segment and isinstance(content, str | bytes):
            name = recording_of(clip)
            yield clip, Segment(content, clip.start_s, clip.end_s, name, limits[name])
        else:
            yield clip, content
