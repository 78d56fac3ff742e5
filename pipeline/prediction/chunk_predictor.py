"""Predict chunks of recordings in one process: in the driver for a few, in each worker of Ray Data for many."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Protocol, Self

import numpy as np
import pyarrow.parquet

from ast_core.dataset.clips import Clip
from ast_core.errors import ClipError
from ast_core.evaluation.prediction_table import Prediction, to_table
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.recording_batches import ProbabilityModel, RecordingBatches, Scored
from ast_core.weights.bundle import Bundle
from pipeline.prediction.chunk_task import run_recordings
from pipeline.prediction.recording_chunks import Chunk, ChunkResult
from pipeline.reporting.predictions import Labelling


class ForRecording(Protocol):
    """Maker of more than a row of each recording, such as its timeline."""

    def add(self, clip: Clip) -> None:
        """Make what belongs to a recording; a `ClipError` refuses the recording."""

    def refuse(self, clip: Clip, error: str) -> None:
        """Note that a recording could not be used, and why."""


class ChunkPredictor:
    """A model on its device with its decoders; a context that ends the decoders.

    Args:
        predictor: model on its device.
        labelling: rule that chooses the labels.
        decoders: recordings that are decoded at the same time.
        mixed: whether a batch may hold windows of several recordings, as `RecordingBatches` says.
    """

    def __init__(self, predictor: Predictor, labelling: Labelling, decoders: int, mixed: bool) -> None:
        self._labelling = labelling
        self._batches = RecordingBatches(ProbabilityModel(predictor), decoders, mixed)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the decoders."""
        self._batches.__exit__(kind, error, trace)

    def run_chunk(self, chunk: Chunk) -> Iterator[ChunkResult]:
        """Yield the result of a chunk; errors are those of `predict_chunk`."""
        yield self.predict_chunk(chunk)

    def predict_chunk(self, chunk: Chunk, for_recording: ForRecording | None = None) -> ChunkResult:
        """Predict the recordings of a chunk: each one has one row, which holds its probabilities or its error.

        Raises:
            UserError: a recording cannot be read, because of the disk or the store.
        """
        result = ChunkResult(chunk.number, chunk.file_name)
        rows = list(self._predict(chunk, for_recording))
        for row in rows:
            result.recordings += 1
            result.length_s += row.end_s or 0.0
            if row.labels is None:
                result.refused += 1
                result.reasons[row.error] += 1
            else:
                result.labels[next(iter(row.labels), "")] += 1
        file = io.BytesIO()
        pyarrow.parquet.write_table(to_table(rows, self._labelling.bundle.labels), file)
        result.rows = file.getvalue()
        return result

    def _predict(self, chunk: Chunk, for_recording: ForRecording | None) -> Iterator[Prediction]:
        for clip, found in run_recordings(self._batches, chunk):
            try:
                if isinstance(found, ClipError):
                    raise found
                if for_recording is not None:
                    for_recording.add(clip)
                yield self._label(clip, found)
            except ClipError as error:
                if for_recording is not None:
                    for_recording.refuse(clip, str(error))
                yield Prediction(clip.clip_id, error=str(error))

    def _label(self, clip: Clip, found: Scored) -> Prediction:
        scores_BC: np.ndarray = found.scores_C[None]
        return self._labelling.label(clip.clip_id, [0.0], [found.length_s], scores_BC)[0]


@dataclass(frozen=True)
class PredictTask:
    """The rows of `predict` as a `ChunkTask`."""

    decide: bool
    top_k: int
    min_probability: float
    stage: ClassVar[str] = "predict"

    def open(self, bundle: Bundle, device: str, decoders: int, mixed: bool) -> ChunkPredictor:
        """Return the runner of one process."""
        labelling = Labelling(bundle, self.decide, self.top_k, self.min_probability)
        return ChunkPredictor(Predictor(bundle, device), labelling, decoders, mixed)
