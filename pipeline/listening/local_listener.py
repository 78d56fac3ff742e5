"""A model of this process that listens to a source, and how far it is behind.

Shapes: W windows, C classes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ast_core.evaluation.live.live_windows import LiveWindow, LiveWindows, score_live
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE
from pipeline.listening.sound_sources import SoundReader

KEPT_LAGS = 10_000
"""Windows over which lags are summarised."""


@dataclass(frozen=True)
class Heard:
    """The result of a window."""

    window: LiveWindow
    scores_C: np.ndarray
    """Probabilities, float32 [C]."""
    lag_s: float
    """Seconds from the arrival of the window's last sample to the result."""


@dataclass
class LagSummary:
    """How far results are behind the sound."""

    hop_s: float
    windows: int = 0
    longest_s: float = 0.0
    lags_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LAGS))
    inferences_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LAGS))
    """Seconds of each batch, most of which have one window."""

    def add(self, lag_s: float) -> None:
        """Count a window."""
        self.windows += 1
        self.longest_s = max(self.longest_s, lag_s)
        self.lags_s.append(lag_s)

    def describe(self) -> str:
        """Return a sentence about the lags; there was a window."""
        middle_s, high_s = np.percentile(self.lags_s, [50, 95])
        return (
            f"Results came {middle_s:.2f} s (median), {high_s:.2f} s (95 %) and {self.longest_s:.2f} s (longest) after "
            f"their window's last sample; one inference took {np.median(self.inferences_s):.2f} s. With a result every "
            f"{self.hop_s:g} s, a sound was in one after {self.hop_s + middle_s:.2f} s (median), at the latest "
            f"{self.hop_s + self.longest_s:.2f} s."
        )


class LocalListener:
    """A model that listens.

    Args:
        predictor: bundle on its device.
        hop_s: seconds from one window to the next; None as `Predictor.measure_hop`.

    Raises:
        UserError: the members have different front ends, or the hop is below one frame or longer than a window.
    """

    def __init__(self, predictor: Predictor, hop_s: float | None) -> None:
        self._predictor = predictor
        fbank, hop_samples = predictor.measure_hop(hop_s)
        self._live = LiveWindows(fbank, hop_samples)
        self._rate_hz = fbank.config.sample_rate_hz
        self.lags = LagSummary(hop_samples / self._rate_hz)
        warm = LiveWindows(fbank, hop_samples)  # the first inference takes longer than all others
        warm.add(np.zeros(fbank.clip_samples, np.float32))
        score_live(predictor, warm.cut(1))

    @property
    def heard_s(self) -> float:
        """Seconds of sound so far."""
        return self._live.samples / self._rate_hz

    def listen(self, reader: SoundReader) -> Iterator[Heard]:
        """Yield the result of each window; of several in one batch if the model is behind.

        Raises:
            ClipError: the sound cannot be used, or is shorter than one analysis window.
            UserError: the source cannot be used.
        """
        ready: list[tuple[LiveWindow, float]] = []
        arrived_s = time.monotonic()
        for sound in reader:
            arrived_s = sound.arrived_s
            self._live.add(sound.wave_N)
            while self._live.ready:
                ready += [(own, arrived_s) for own in self._live.cut(WINDOWS_AT_ONCE - len(ready))]
                if len(ready) == WINDOWS_AT_ONCE:
                    yield from self._score(ready)
                    ready = []
            if ready and reader.empty:
                yield from self._score(ready)
                ready = []
        if (last := self._live.finish()) is not None:
            ready.append((last, arrived_s))
        if ready:
            yield from self._score(ready)

    def _score(self, ready: Sequence[tuple[LiveWindow, float]]) -> Iterator[Heard]:
        started_s = time.monotonic()
        scores_WC = score_live(self._predictor, [own for own, _ in ready])
        done_s = time.monotonic()
        self.lags.inferences_s.append(done_s - started_s)
        for (own, arrived_s), scores_C in zip(ready, scores_WC, strict=True):
            self.lags.add(done_s - arrived_s)
            yield Heard(own, scores_C, done_s - arrived_s)
