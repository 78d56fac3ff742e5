"""A window that slides over samples while they arrive.

Shapes: N samples, W windows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.errors import require
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, Window
from ast_core.weights.ensemble_mean import mean_probabilities


@dataclass(frozen=True)
class LiveWindow:
    """A window of a stream, ready for a model."""

    window: Window
    start_s: float
    """Start of its sound in seconds from the start of the stream, 0 or more."""
    end_s: float
    """End of its sound."""


class LiveWindows:
    """The windows of a stream: those of a timeline with `edges`, each as soon as its last sample is there.

    The first windows hold less than a window of sound, as if the stream had been silent before; they are padded at
    their end, as short clips are in training. So the first result comes within a hop, and not after a window.

    A window's filterbank is computed from its samples, and not assembled from the frames of the windows before: each
    window has its own mean subtracted, so frames of another window differ by rounding. Whole windows have the bits of
    `timeline`, and cost less than a hundredth of what a base model costs.

    Memory holds one window of samples, and those that were added since `cut` returned no window.

    Args:
        fbank: filterbank of the model's front end.
        hop_samples: samples from one window to the next: a multiple of a frame, at most a window.

    Raises:
        UserError: the hop is longer than a window.
    """

    def __init__(self, fbank: Fbank, hop_samples: int) -> None:
        rate_hz, size, least = fbank.config.sample_rate_hz, fbank.clip_samples, fbank.window_samples
        require(
            hop_samples <= size,
            f"A hop of {hop_samples / rate_hz:g} s leaves gaps between windows of {fbank.config.clip_s} s; give a "
            "shorter one.",
        )
        self._fbank, self._hop = fbank, hop_samples
        self._start = -((size - least) // hop_samples) * hop_samples
        """First sample of the next window; negative if the window begins before the stream."""
        self._last_end = 0
        self._parts: list[np.ndarray] = []
        self._offset = 0
        """Place in the stream of the first sample that is held."""
        self.samples = 0
        """Samples that were added."""

    def add(self, wave_N: np.ndarray) -> None:
        """Add samples.

        Args:
            wave_N: the next samples, float32 [N] at the front end's rate.
        """
        self._parts.append(wave_N)
        self.samples += len(wave_N)

    @property
    def ready(self) -> bool:
        """Whether `cut` returns a window."""
        return self._start + self._fbank.clip_samples <= self.samples

    def cut(self, most: int = WINDOWS_AT_ONCE) -> list[LiveWindow]:
        """Return the next complete windows; none if samples are missing.

        Args:
            most: largest number of windows.
        """
        found: list[LiveWindow] = []
        while len(found) < most and self.ready:
            found.append(self._make_window(max(0, self._start), self._start + self._fbank.clip_samples))
            self._start += self._hop
        return found

    def finish(self) -> LiveWindow | None:
        """Return the window that ends with the stream; None if a window has ended there, to a frame.

        Call it once `cut` has returned no window.

        Raises:
            ClipError: the stream is shorter than one analysis window.
        """
        if self._last_end and self.samples - self._last_end < self._fbank.hop_samples:
            return None
        return self._make_window(max(0, self.samples - self._fbank.clip_samples), self.samples)

    def _make_window(self, start: int, end: int) -> LiveWindow:
        """Return the window of some samples, and forget those that no later window needs."""
        held_N = np.concatenate([np.empty(0, np.float32), *self._parts])
        cut_N = held_N[start - self._offset : end - self._offset]
        fbank_TM = fit_length(self._fbank(torch.from_numpy(cut_N)), self._fbank.config.target_frames)
        window = Window(fbank_TM.half().float(), self._fbank.num_frames(len(cut_N)))  # rounded as the shards are
        self._parts = [held_N[start - self._offset :]]
        self._offset, self._last_end = start, end
        rate_hz = self._fbank.config.sample_rate_hz
        return LiveWindow(window, start / rate_hz, end / rate_hz)


def score_live(predictor: Predictor, windows: Sequence[LiveWindow]) -> np.ndarray:
    """Return the probabilities of windows in one batch, float32 [W, C].

    Args:
        predictor: bundle on a device, whose members have one front end.
        windows: windows of that front end.
    """
    found = predictor.score_windows(predictor.bundle.front_end, [own.window for own in windows])
    return mean_probabilities([scores_WC for _, scores_WC in found])
