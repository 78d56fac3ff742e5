"""A model that takes recordings: files, arrays and lists of them in, probabilities by class name out.

Shapes: W windows, C classes.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
import torch

from ast_core.audio.decoder import Decoder
from ast_core.errors import UserError, require
from ast_core.evaluation.embedder import Embedding, find_member
from ast_core.evaluation.event_windows import decide_events, score_with_edges
from ast_core.evaluation.events import Event, EventRule, Windows
from ast_core.evaluation.prediction_table import top_classes
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.recording_inputs import ArrayInput, Audio, FileInput, is_single, name_errors, read_inputs
from ast_core.evaluation.window_cuts import MeasuredBlocks
from ast_core.weights.bundle import Bundle
from ast_core.weights.decisions import Decisions


@dataclass(frozen=True, eq=False, repr=False)
class Timeline:
    """Probabilities of a recording over time, of windows that may overlap."""

    starts_s: npt.NDArray[np.float64]
    """Start of each window in seconds, float64 [W]; with `edges`, the first ones are below 0."""
    ends_s: npt.NDArray[np.float64]
    """End of each window in seconds, float64 [W]; the last window ends with the recording."""
    probabilities: npt.NDArray[np.float32]
    """Probability of each class in each window, float32 [W, C]."""
    labels: tuple[str, ...]
    """Names of the C classes."""
    window_s: float
    """Seconds of a window that the recording does not cut."""
    decisions: Decisions | None = None
    """Calibration and thresholds of the model, if `calibrate` fitted them."""

    def __repr__(self) -> str:
        """Return a line that describes the timeline; it may have hundreds of classes."""
        return f"Timeline({len(self.starts_s)} windows, {self.ends_s[-1]:.2f} s, {len(self.labels)} classes)"

    def top(self, count: int = 5) -> list[dict[str, float]]:
        """Return the most probable classes of each window, the most probable first.

        Args:
            count: number of classes for each window.
        """
        return [_name_scores(self.labels, scores_C, count) for scores_C in self.probabilities]

    def events(
        self,
        threshold: float | None = None,
        *,
        release: float = EventRule.release,
        min_s: float = EventRule.min_s,
        gap_s: float = EventRule.gap_s,
        overlap: float = EventRule.overlap,
    ) -> list[Event]:
        """Find the sounds with their beginnings and ends, the earliest first.

        Edges are accurate to half a hop if the model reports a sound as soon as a part of it is in a window. Two sounds
        of a class that are closer than a window are one event. Sounds in the first and the last window are located only
        in a timeline with `edges`; in another one they begin or end with the recording.

        Args:
            threshold: probability at which an event of any class begins. By default the thresholds of a calibrated
                model, else 0.5. The probabilities of a calibrated model are calibrated first.
            release: share of the threshold below which an event ends.
            min_s: shortest event in seconds.
            gap_s: two events of a class with a shorter gap between them are one.
            overlap: share of a window that a sound fills when the probability reaches the threshold. A model that
                reports events late and short needs a larger one.

        Raises:
            UserError: a value is out of its range.
        """
        rule = EventRule(threshold, release, min_s, gap_s, overlap)
        windows = Windows(self.starts_s, self.window_s, float(self.ends_s.max()))
        return decide_events(windows, self.probabilities, self.labels, self.decisions, rule)


class AudioTagger:
    """A loaded model. `ast_core.load` makes it.

    It may be used from several threads, which predict one after the other.

    Args:
        bundle: members whose probabilities are averaged.
        device: `auto` (CUDA if torch finds a GPU, else the CPU), `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: torch does not find the device, or the members have different sampling rates.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        self._predictor = Predictor(bundle, choose_device(device))
        self._decoder = Decoder()
        self._lock = threading.Lock()  # the decoder reads one recording at a time

    @property
    def bundle(self) -> Bundle:
        """Members, settings and origin of the model."""
        return self._predictor.bundle

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of a timeline's columns."""
        return self.bundle.labels

    @property
    def single_label(self) -> bool:
        """Whether the model was trained on clips with exactly one label."""
        return self.bundle.single_label

    @property
    def sample_rate_hz(self) -> int:
        """Sampling rate of the model; recordings of other rates are resampled."""
        return self.bundle.front_end.sample_rate_hz

    @property
    def window_s(self) -> float:
        """Seconds of a window, which is as long as a training clip; of an ensemble, of the first member."""
        return self.bundle.front_end.clip_s

    @property
    def device(self) -> str:
        """Device that computes, such as `cpu` or `cuda`."""
        return str(self._predictor.device)

    def __repr__(self) -> str:
        """Return a line that describes the model."""
        return (
            f"AudioTagger({len(self.bundle.members)} members, {len(self.labels)} classes, {self.sample_rate_hz} Hz, "
            f"{self.device})"
        )

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is one recording, although it is iterable
        self, audio: Audio, sample_rate_hz: float | None = None, *, decide: bool = False
    ) -> dict[str, float]: ...
    @overload
    def predict(
        self, audio: Iterable[Audio], sample_rate_hz: float | None = None, *, decide: bool = False
    ) -> list[dict[str, float]]: ...
    def predict(
        self, audio: Audio | Iterable[Audio], sample_rate_hz: float | None = None, *, decide: bool = False
    ) -> dict[str, float] | list[dict[str, float]]:
        """Predict the probability of each class, for recordings of any length.

        A recording is cut into consecutive windows of the training length, whose probabilities are averaged. The values
        are those of `ast-pipeline predict`.

        Args:
            audio: path of a file, an array, or several of them in a list or another iterable. An array holds samples,
                [N] or [N, channels], nominally in [-1, 1]; int16 and int32 are scaled by their full scale. Channels are
                mixed to mono.
            sample_rate_hz: sampling rate of the arrays, which are resampled to that of the model. Files have their own.
            decide: whether to return only the classes that the thresholds of a calibrated bundle choose, with
                calibrated probabilities.

        Returns:
            Probabilities by class name, the most probable first. Of several recordings, a list in their order.

        Raises:
            UserError: a recording is missing, damaged, shorter than one analysis window, or no audio; or `decide` is
                true and the bundle has no thresholds. One such recording in a list fails the complete list.
        """
        require(
            not decide or self.bundle.decisions is not None,
            "decide is true, but this bundle has no thresholds to decide by; run `ast-pipeline calibrate` first.",
        )
        results = [self._predict_one(own, decide) for own in read_inputs(audio, sample_rate_hz)]
        return results[0] if is_single(audio) else results

    @overload
    def timeline(  # type: ignore[overload-overlap]  # a str is one recording, although it is iterable
        self, audio: Audio, sample_rate_hz: float | None = None, *, hop_s: float | None = None, edges: bool = False
    ) -> Timeline: ...
    @overload
    def timeline(
        self,
        audio: Iterable[Audio],
        sample_rate_hz: float | None = None,
        *,
        hop_s: float | None = None,
        edges: bool = False,
    ) -> list[Timeline]: ...
    def timeline(
        self,
        audio: Audio | Iterable[Audio],
        sample_rate_hz: float | None = None,
        *,
        hop_s: float | None = None,
        edges: bool = False,
    ) -> Timeline | list[Timeline]:
        """Predict probabilities over time, of windows as long as a training clip.

        The values are those of `ast-pipeline predict --timeline`.

        Args:
            audio: recording or recordings, as `predict` takes them.
            sample_rate_hz: sampling rate of the arrays.
            hop_s: seconds from the start of one window to the start of the next; it is rounded to whole frames.
                By default 1, or the length of a window if that is shorter.
            edges: whether windows may begin before the recording, and end after it. `Timeline.events` needs them to
                locate sounds in the first and the last window.

        Returns:
            Timeline of the recording. Of several recordings, a list in their order.

        Raises:
            UserError: as `predict`; or the hop is shorter than one frame or, with `edges`, longer than a window; or the
                members have different front ends.
        """
        hop_s = _read_hop(hop_s)
        results = [self._follow_one(own, hop_s, edges) for own in read_inputs(audio, sample_rate_hz)]
        return results[0] if is_single(audio) else results

    @overload
    def events(  # type: ignore[overload-overlap]  # a str is one recording, although it is iterable
        self,
        audio: Audio,
        sample_rate_hz: float | None = None,
        *,
        threshold: float | None = None,
        hop_s: float | None = None,
        release: float = EventRule.release,
        min_s: float = EventRule.min_s,
        gap_s: float = EventRule.gap_s,
        overlap: float = EventRule.overlap,
    ) -> list[Event]: ...
    @overload
    def events(
        self,
        audio: Iterable[Audio],
        sample_rate_hz: float | None = None,
        *,
        threshold: float | None = None,
        hop_s: float | None = None,
        release: float = EventRule.release,
        min_s: float = EventRule.min_s,
        gap_s: float = EventRule.gap_s,
        overlap: float = EventRule.overlap,
    ) -> list[list[Event]]: ...
    def events(
        self,
        audio: Audio | Iterable[Audio],
        sample_rate_hz: float | None = None,
        *,
        threshold: float | None = None,
        hop_s: float | None = None,
        release: float = EventRule.release,
        min_s: float = EventRule.min_s,
        gap_s: float = EventRule.gap_s,
        overlap: float = EventRule.overlap,
    ) -> list[Event] | list[list[Event]]:
        """Find the sounds of recordings with their beginnings and ends, the earliest first.

        This is `timeline` with `edges`, and its `events`; `Timeline.events` says how exact the edges are.

        Args:
            audio: recording or recordings, as `predict` takes them.
            sample_rate_hz: sampling rate of the arrays.
            threshold: probability at which an event of any class begins. By default the thresholds of a calibrated
                model, else 0.5.
            hop_s: seconds from the start of one window to the start of the next, at most a window. By default 1, or
                the length of a window if that is shorter.
            release: share of the threshold below which an event ends.
            min_s: shortest event in seconds.
            gap_s: two events of a class with a shorter gap between them are one.
            overlap: share of a window that a sound fills when the probability reaches the threshold.

        Returns:
            Events of the recording. Of several recordings, a list of them in their order.

        Raises:
            UserError: as `timeline`; or a value is out of its range.
        """
        EventRule(threshold, release, min_s, gap_s, overlap)  # checks the values before anything is decoded
        rule = {"release": release, "min_s": min_s, "gap_s": gap_s, "overlap": overlap}
        hop_s = _read_hop(hop_s)
        timelines = (self._follow_one(own, hop_s, edges=True) for own in read_inputs(audio, sample_rate_hz))
        results = [own.events(threshold, **rule) for own in timelines]
        return results[0] if is_single(audio) else results

    @overload
    def embed(  # type: ignore[overload-overlap]  # a str is one recording, although it is iterable
        self, audio: Audio, sample_rate_hz: float | None = None, *, layer: int | None = None, member: str | None = None
    ) -> Embedding: ...
    @overload
    def embed(
        self,
        audio: Iterable[Audio],
        sample_rate_hz: float | None = None,
        *,
        layer: int | None = None,
        member: str | None = None,
    ) -> list[Embedding]: ...
    def embed(
        self,
        audio: Audio | Iterable[Audio],
        sample_rate_hz: float | None = None,
        *,
        layer: int | None = None,
        member: str | None = None,
    ) -> Embedding | list[Embedding]:
        """Return the embeddings of recordings: what the model makes of the sound before its head names it.

        The values are those of `ast-pipeline embed`; those of its workers on Ray differ by rounding.

        Args:
            audio: recording or recordings, as `predict` takes them.
            sample_rate_hz: sampling rate of the arrays.
            layer: block of the transformer whose output is used, counted from 1; by default the last one.
            member: name of the member of an ensemble, whose members have embeddings of their own. A model of one
                member needs none.

        Returns:
            Embeddings of the recording. Of several recordings, a list in their order.

        Raises:
            UserError: as `predict`; or the model has no such block or member, or has several members and `member` is
                None.
        """
        self.bundle.members[find_member(self.bundle, member)].model.find_layer(layer)
        results = [self._embed_one(own, layer, member) for own in read_inputs(audio, sample_rate_hz)]
        return results[0] if is_single(audio) else results

    def _embed_one(self, own: FileInput | ArrayInput, layer: int | None, member: str | None) -> Embedding:
        with self._lock, name_errors(own):
            return self._predictor.embed(own.to_blocks(self.sample_rate_hz, self._decoder), layer, member)

    def _predict_one(self, own: FileInput | ArrayInput, decide: bool) -> dict[str, float]:
        with self._lock, name_errors(own):
            scores_C = self._predictor.probabilities(own.to_blocks(self.sample_rate_hz, self._decoder))
        rule = self.bundle.decisions
        if not decide or rule is None:
            return _name_scores(self.labels, scores_C)
        chosen_C = rule.decide(scores_C[None])[0]
        named = _name_scores(self.labels, rule.calibrated(scores_C[None])[0])
        chosen = {self.labels[c] for c in np.flatnonzero(chosen_C)}
        return {name: score for name, score in named.items() if name in chosen}

    def _follow_one(self, own: FileInput | ArrayInput, hop_s: float | None, edges: bool) -> Timeline:
        with self._lock, name_errors(own):
            blocks = MeasuredBlocks(own.to_blocks(self.sample_rate_hz, self._decoder))
            if edges:
                starts_s, scores_WC = score_with_edges(self._predictor, blocks, hop_s)
            else:
                starts_s, scores_WC = self._predictor.timeline(blocks, hop_s)
        length_s = blocks.samples / self.sample_rate_hz
        ends_s = np.minimum(starts_s + self.window_s, length_s)  # the last window is padded
        return Timeline(starts_s, ends_s, scores_WC, self.labels, self.window_s, self.bundle.decisions)


def _read_hop(hop_s: float | None) -> float | None:
    """Return the hop of a call as a float; UserError if it is no finite number."""
    if hop_s is None:
        return None
    number = isinstance(hop_s, int | float | np.integer | np.floating) and math.isfinite(hop_s)
    require(number, f"hop_s is {hop_s!r}; give a number of seconds, for example 1.0.")
    return float(hop_s)


def choose_device(device: str) -> str:
    """Return the device of a name; `auto` is the GPU if torch finds one with CUDA, else the CPU.

    Raises:
        UserError: the name is unknown, or torch does not find the device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", device if isinstance(device, str) else "")
    if match is None:
        raise UserError(f"device is {str(device)[:80]!r}; give auto, cpu, cuda, or one GPU such as cuda:0.")
    if device != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(
            count > int(match[1] or 0),
            f"device is {device}, but torch {torch.__version__} finds {count} GPUs with CUDA on this machine. Give "
            f"{'cuda:0 to cuda:' + str(count - 1) if count else 'cpu, or check the driver with nvidia-smi'}.",
        )
    return device


def _name_scores(labels: tuple[str, ...], scores_C: np.ndarray, count: int | None = None) -> dict[str, float]:
    """Return the highest scores, all by default, by class name, the highest first."""
    order = top_classes(scores_C, len(labels) if count is None else count)
    return {labels[c]: float(scores_C[c]) for c in order}
