"""What a request asks of a recording: probabilities, events over time, or an embedding.

Each job cuts a recording into windows as `predict` and `AudioTagger` do, and joins what the model makes of them. Jobs
of one kind share a runner, so their windows share batches.

Shapes: W windows, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.errors import ClipError
from ast_core.evaluation.audio_tagger import Timeline
from ast_core.evaluation.embedder import Embedder
from ast_core.evaluation.event_windows import cut_with_edges
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.recording_batches import ProbabilityModel, Scored
from ast_core.evaluation.window_cuts import Blocks, Window
from ast_core.weights.ensemble_mean import mean_probabilities
from pipeline.serving.batching.window_queue import WindowRunner


class RecordingJob(Protocol):
    """One recording's way through the model."""

    @property
    def runner(self) -> WindowRunner:
        """What computes the windows."""

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The filterbanks by which the recording is cut, one after the other."""

    def cut(self, fbank: Fbank, blocks: Blocks) -> Iterator[Window]:
        """Yield the windows of a recording; a `ClipError` refuses it."""

    def join(self, parts: Sequence[Any], length_s: float) -> Any:
        """Return the result from those of the windows, and the recording's length in seconds."""


@dataclass(frozen=True)
class PredictJob:
    """The probabilities of a recording, as `predict` makes them."""

    runner: ProbabilityModel

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The filterbank of each different front end of the members."""
        return self.runner.filterbanks

    def cut(self, fbank: Fbank, blocks: Blocks) -> Iterator[Window]:
        """Yield consecutive windows of the training length."""
        return self.runner.cut(fbank, blocks)

    def join(self, parts: Sequence[Any], length_s: float) -> Scored:
        """Return the mean over windows, then over members."""
        return self.runner.join(parts, length_s)


@dataclass(frozen=True)
class EmbedJob:
    """The embedding of a recording by one member, as `embed` makes it."""

    runner: Embedder

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The filterbank of the member's front end."""
        return self.runner.filterbanks

    def cut(self, fbank: Fbank, blocks: Blocks) -> Iterator[Window]:
        """Yield the windows of `predict`."""
        return self.runner.cut(fbank, blocks)

    def join(self, parts: Sequence[Any], length_s: float) -> EmbeddedRecording:
        """Return the mean over the windows."""
        return EmbeddedRecording(self.runner.join(parts, length_s).clip, length_s)


@dataclass(frozen=True)
class EmbeddedRecording:
    """The embedding of a recording."""

    clip_E: np.ndarray
    length_s: float


@dataclass(frozen=True)
class TimelineJob:
    """Probabilities over time of one recording, with windows across its ends, as `AudioTagger.events` makes them.

    A job is for one recording, because it keeps the places of its windows.
    """

    runner: ProbabilityModel
    predictor: Predictor
    fbank: Fbank
    hop_samples: int
    most_windows: int
    """Windows of a recording at most."""
    starts: list[int] = field(default_factory=list)
    """First sample of each window so far."""

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The one filterbank of all members."""
        return (self.fbank,)

    def cut(self, fbank: Fbank, blocks: Blocks) -> Iterator[Window]:
        """Yield a window every hop; ClipError if they are too many."""
        frames = fbank.config.target_frames
        for start, cut_N in cut_with_edges(fbank, blocks, self.hop_samples):
            if len(self.starts) >= self.most_windows:
                reason = f"it has more than {self.most_windows} windows at this hop; give a longer hop_s"
                raise ClipError("fbank", reason)
            self.starts.append(start)
            fbank_TM = fit_length(fbank(torch.from_numpy(cut_N)), frames).half().float()
            yield Window(fbank_TM, fbank.num_frames(len(cut_N)))

    def join(self, parts: Sequence[dict[int, np.ndarray]], length_s: float) -> Timeline:
        """Return the probabilities of each window, the mean over the members."""
        bundle = self.predictor.bundle
        members = range(len(bundle.members))
        scores_WC = mean_probabilities([np.stack([own[number] for own in parts]) for number in members])
        starts_s = np.array(self.starts) / self.fbank.config.sample_rate_hz
        window_s = bundle.front_end.clip_s
        ends_s = np.minimum(starts_s + window_s, length_s)
        return Timeline(starts_s, ends_s, scores_WC, bundle.labels, window_s, bundle.decisions)
