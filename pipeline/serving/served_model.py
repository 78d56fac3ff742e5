"""One version of a model on its device, ready for requests.

Shapes: C classes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ast_core.errors import ClipError, UserError
from ast_core.evaluation.audio_tagger import Timeline
from ast_core.evaluation.embedder import Embedder, find_member
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.recording_batches import ProbabilityModel, Scored
from ast_core.evaluation.window_cuts import Window, cut_windows
from ast_core.weights.bundle import Bundle
from pipeline.serving.batching.decoder_pool import DecoderPool
from pipeline.serving.batching.recording_jobs import EmbeddedRecording, EmbedJob, PredictJob, RecordingJob, TimelineJob
from pipeline.serving.batching.window_queue import WindowQueue

FEW_PARTS = 64
"""Windows whose results are joined in the thread that answers requests."""


@dataclass
class ServedModel:
    """A model in memory; several of them share the queue and the decoders of a replica."""

    name: str
    """Name in the registry, else of the folder or on the hub."""
    version: str | None
    """Version in the registry."""
    predictor: Predictor
    windows: WindowQueue
    decoders: DecoderPool
    most_windows: int
    """Windows of a timeline at most."""
    _embedders: dict[tuple[int, int | None], Embedder] = field(default_factory=dict)
    _probabilities: ProbabilityModel = field(init=False)

    def __post_init__(self) -> None:
        """Make the runner that all probabilities share."""
        self._probabilities = ProbabilityModel(self.predictor)

    @property
    def bundle(self) -> Bundle:
        """Members, labels and settings."""
        return self.predictor.bundle

    @property
    def sample_rate_hz(self) -> int:
        """Rate to which recordings are resampled."""
        return self.bundle.front_end.sample_rate_hz

    @property
    def identity(self) -> dict[str, Any]:
        """What each answer says about the model."""
        return {"name": self.name, "version": self.version, "digest": self.bundle.digest}

    def describe(self) -> dict[str, Any]:
        """Return what `/v1/model` says, without the other versions."""
        bundle = self.bundle
        return {
            **self.identity,
            "labels": list(bundle.labels),
            "single_label": bundle.single_label,
            "sample_rate_hz": self.sample_rate_hz,
            "window_s": bundle.front_end.clip_s,
            "members": [member.name for member in bundle.members],
            "calibrated": bundle.decisions is not None,
        }

    async def predict(self, content: bytes) -> Scored:
        """Return the probabilities of a recording, which are those of `predict`; ClipError if it cannot be used."""
        found: Scored = await self._run(content, PredictJob(self._probabilities))
        return found

    async def follow(self, content: bytes, hop_s: float | None) -> Timeline:
        """Return the probabilities of a recording over time, with windows across its ends.

        Raises:
            UserError: the hop is out of its range, or gives too many windows.
            ClipError: the recording cannot be used.
        """
        fbank, hop_samples = self.measure_hop(hop_s)
        job = TimelineJob(self._probabilities, self.predictor, fbank, hop_samples, self.most_windows)
        found: Timeline = await self._run(content, job)
        return found

    async def embed(self, content: bytes, member: str | None, layer: int | None) -> EmbeddedRecording:
        """Return the embedding of a recording; ClipError if it cannot be used, UserError as `find_embedder`."""
        found: EmbeddedRecording = await self._run(content, EmbedJob(self.find_embedder(member, layer)))
        return found

    def measure_hop(self, hop_s: float | None) -> tuple[Any, int]:
        """Return the filterbank of all members and a hop in samples.

        Raises:
            UserError: the members have different front ends, or the hop is below one frame or longer than a window.
        """
        fbank, hop_samples = self.predictor.measure_hop(hop_s)
        if hop_samples > fbank.clip_samples:
            raise UserError(f"hop_s is {hop_s:g}; give at most a window, {fbank.config.clip_s:g} s.")
        return fbank, hop_samples

    def find_embedder(self, member: str | None, layer: int | None) -> Embedder:
        """Return the embedder of a member and a block, the same one each time, so that requests share batches.

        Raises:
            UserError: there is no such member or block, or the model has several members and `member` is None.
        """
        number = find_member(self.bundle, member)
        own = self.bundle.members[number]
        layer = own.model.find_layer(layer)
        if (number, layer) not in self._embedders:
            fbank = next(found for found in self.predictor.filterbanks if found.config == own.front_end)
            self._embedders[number, layer] = Embedder(own, fbank, layer, frames=False)
        return self._embedders[number, layer]

    def score_windows(self, windows: Sequence[Window]) -> np.ndarray:
        """Return the probabilities of windows, float32 [W, C], through the queue of all requests.

        The members must have one front end (`measure_hop` checks it). This waits, so call it in a thread.
        """
        fbank = self.predictor.filterbanks[0]
        parts = self.windows.feed(self._probabilities, fbank, windows).result()
        job = TimelineJob(self._probabilities, self.predictor, fbank, 1, len(windows), [0] * len(windows))
        return job.join(parts, 0.0).probabilities

    def warm_up(self) -> None:
        """Predict a window of silence; whatever the model raises shows that it cannot serve."""
        for fbank in self.predictor.filterbanks:
            silence_N = np.zeros(fbank.clip_samples, np.float32)
            cut = list(cut_windows(fbank, silence_N, fbank.config.target_frames))
            scores = self.windows.feed(self._probabilities, fbank, cut).result()
            if not all(np.isfinite(row_C).all() for part in scores for row_C in part.values()):
                raise UserError(f"{self.name} predicts values that are not finite; serve another version.")

    async def _run(self, content: bytes, job: RecordingJob) -> Any:
        """Decode a recording, compute its windows and join the results; stop if the caller is cancelled."""
        stop = threading.Event()
        try:
            fed = await asyncio.wrap_future(self.decoders.submit(content, self.sample_rate_hz, job, stop))
            parts = [part for future in fed.parts for part in await asyncio.wrap_future(future)]
            if len(parts) <= FEW_PARTS:
                return require_finite(job.join(parts, fed.length_s))
            return require_finite(await asyncio.to_thread(job.join, parts, fed.length_s))
        finally:
            stop.set()


def require_finite(found: Scored | Timeline | EmbeddedRecording) -> Any:
    """Return a result; ClipError if the model returned values that no JSON can hold."""
    if isinstance(found, Timeline):
        values = found.probabilities
    else:
        values = found.scores_C if isinstance(found, Scored) else found.clip_E
    if not np.isfinite(values).all():
        what = "an embedding" if isinstance(found, EmbeddedRecording) else "a probability"
        raise ClipError("model", f"{what} is not finite")  # the words of `embed`
    return found
