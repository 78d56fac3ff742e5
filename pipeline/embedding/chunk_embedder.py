"""Embed chunks of recordings in one process: in the driver for a few, in each worker of Ray Data for many.

Shapes: K rows, E embedding.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
import pyarrow.parquet

from ast_core.dataset.clips import Clip
from ast_core.errors import ClipError
from ast_core.evaluation.embedder import Embedder, Embedding, WindowEmbedding, find_member
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.recording_batches import RecordingBatches
from ast_core.weights.adapted_member import adapt_member
from ast_core.weights.bundle import Bundle
from pipeline.embedding.embedding_table import EmbeddedRows, to_embedding_table
from pipeline.prediction.chunk_task import run_recordings
from pipeline.prediction.recording_chunks import Chunk, ChunkResult

PART_BYTES = 64 << 20
"""Bytes of embeddings after which the rows of a chunk go on in another file; a recording is never split."""


@dataclass(frozen=True)
class EmbedTask:
    """The rows of `embed` as a `ChunkTask`."""

    member: str | None
    """Name of the member; None for the only one."""
    layer: int | None
    """Block whose output is used, counted from 1; None for the last one."""
    frames: bool
    """Whether to make one row a patch in time, else one a recording."""
    target_frames: int
    """Frames of a window, to which the positions are adapted."""
    audio_column: str = ""
    """Column of the recordings in Parquet files; "" finds it."""
    stage: ClassVar[str] = "embed"

    def open(self, bundle: Bundle, device: str, decoders: int, mixed: bool) -> ChunkEmbedder:
        """Return the runner of one process."""
        member = adapt_member(bundle.members[find_member(bundle, self.member)], self.target_frames)
        predictor = Predictor(dataclasses.replace(bundle, members=(member,)), device)
        embedder = Embedder(member, predictor.filterbanks[0], self.layer, self.frames)
        return ChunkEmbedder(self, embedder, decoders, mixed)


class ChunkEmbedder:
    """A model on its device with its decoders; a context that ends the decoders.

    Args:
        task: rows to make.
        embedder: model on its device.
        decoders: recordings that are decoded at the same time.
        mixed: whether a batch may hold windows of several recordings, as `RecordingBatches` says.
    """

    def __init__(self, task: EmbedTask, embedder: Embedder, decoders: int, mixed: bool) -> None:
        self._task, self._size = task, embedder.size
        self._batches: RecordingBatches[WindowEmbedding, Embedding] = RecordingBatches(embedder, decoders, mixed)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the decoders."""
        self._batches.__exit__(kind, error, trace)

    def run_chunk(self, chunk: Chunk) -> Iterator[ChunkResult]:
        """Yield the rows of a chunk in files of about `PART_BYTES`: at most 256 clip embeddings are one file.

        Raises:
            UserError: a recording cannot be read, because of the disk or the store.
        """
        clips: list[Clip] = []
        rows: list[EmbeddedRows] = []
        result, first, held = ChunkResult(chunk.number, ""), 0, 0
        for clip, found in run_recordings(self._batches, chunk, self._task.audio_column):
            own = self._make_rows(clip, found)
            if rows and held + own.embedding_KE.nbytes > PART_BYTES:
                yield self._finish(result, Chunk(chunk.number + first, tuple(clips)), rows)
                first += len(clips)
                result, clips, rows, held = ChunkResult(chunk.number, ""), [], [], 0
            clips.append(clip)
            rows.append(own)
            held += own.embedding_KE.nbytes
            result.recordings += 1
            if own.error:
                result.refused += 1
                result.reasons[own.error] += 1
            elif isinstance(found, Embedding):
                result.length_s += found.length_s
        yield self._finish(result, Chunk(chunk.number + first, tuple(clips)), rows)

    def _make_rows(self, clip: Clip, found: Embedding | ClipError) -> EmbeddedRows:
        if isinstance(found, ClipError):
            return EmbeddedRows.refuse(clip.clip_id, str(found), self._size)
        starts_s, ends_s, embedding_KE = found.starts_s, found.ends_s, found.frames
        if not self._task.frames:
            starts_s, ends_s, embedding_KE = np.zeros(1), np.array([found.length_s]), found.clip[None]
        if not np.isfinite(embedding_KE).all():
            return EmbeddedRows.refuse(clip.clip_id, "model: an embedding is not finite", self._size)
        return EmbeddedRows(clip.clip_id, embedding_KE, starts_s + clip.start_s, ends_s + clip.start_s)

    def _finish(self, result: ChunkResult, part: Chunk, rows: list[EmbeddedRows]) -> ChunkResult:
        """Return the result with the Parquet file of its rows."""
        file = io.BytesIO()
        pyarrow.parquet.write_table(to_embedding_table(rows, self._size), file)
        result.number, result.file_name, result.rows = part.number, part.file_name, file.getvalue()
        return result
