"""Prediction with a bundle: recordings of any length to probabilities, each member with its own front end.

Shapes: N samples, W windows, B clips, T frames, M mel bins, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from ast_core.audio.fbank import Fbank
from ast_core.config import FrontEndConfig
from ast_core.errors import require
from ast_core.evaluation.embedder import Embedder, Embedding, find_member
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, Blocks, Window, cut_windows
from ast_core.weights.bundle import Bundle
from ast_core.weights.ensemble_mean import mean_probabilities, member_probabilities

USUAL_HOP_S = 1.0
"""Hop of timelines and events unless the user names one; a shorter window takes its place."""


class Predictor:
    """Bundle on one device, ready to predict.

    Args:
        bundle: bundle whose models are moved to the device.
        device: `cpu` or `cuda`.

    Raises:
        UserError: the members have different sampling rates, so that no recording is right for all of them.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        rates_hz = sorted({member.front_end.sample_rate_hz for member in bundle.members})
        require(
            len(rates_hz) == 1,
            f"This bundle's members have sampling rates of {', '.join(map(str, rates_hz))} Hz; a recording has one. "
            "Predict with the bundle of a single member.",
        )
        self.bundle = bundle
        self.device = torch.device(device)
        self._front_ends = {member.front_end: Fbank(member.front_end) for member in bundle.members}
        for member in bundle.members:
            member.model.to(self.device)

    def probabilities(self, recording: Blocks) -> np.ndarray:
        """Return the probabilities of a recording: the mean over windows of the training length, the last one padded.

        Args:
            recording: float32 [N] at the front end's rate, or blocks of it.

        Returns:
            float32 [C].

        Raises:
            ClipError: the recording is shorter than one analysis window.
        """
        return mean_probabilities([scores_WC.mean(axis=0) for scores_WC in self._score_windows(recording, None)])

    def timeline(self, recording: Blocks, hop_s: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities over time, of windows of the training length, one every `hop_s` seconds.

        Args:
            recording: float32 [N] at the front end's rate, or blocks of it.
            hop_s: seconds from the start of one window to the start of the next; None for 1, or a window if that is
                shorter.

        Returns:
            Starts of the windows in seconds, float64 [W], and their probabilities, float32 [W, C].

        Raises:
            UserError: the members have different front ends, so their windows differ; or the hop is below one frame.
            ClipError: the recording is shorter than one analysis window.
        """
        fbank, hop_samples = self.measure_hop(hop_s)
        scores_WC = mean_probabilities(self._score_windows(recording, hop_samples // fbank.hop_samples))
        return np.arange(len(scores_WC)) * hop_samples / fbank.config.sample_rate_hz, scores_WC

    def embed(self, recording: Blocks, layer: int | None = None, member: str | None = None) -> Embedding:
        """Return the embeddings of a recording.

        Args:
            recording: float32 [N] at the front end's rate, or blocks of it.
            layer: block whose output is used, counted from 1; None for the last one.
            member: name of the member; None for the only one.

        Raises:
            UserError: there is no such block or member, or the bundle has several members and `member` is None.
            ClipError: the recording is shorter than one analysis window.
        """
        found = self.bundle.members[find_member(self.bundle, member)]
        return Embedder(found, self._front_ends[found.front_end], layer).embed(recording)

    def measure_hop(self, hop_s: float | None) -> tuple[Fbank, int]:
        """Return the filterbank of all members, and a hop in samples, which is rounded to whole frames.

        Args:
            hop_s: seconds from the start of one window to the start of the next; None for 1, or a window if that is
                shorter.

        Raises:
            UserError: the members have different front ends, so their windows differ; or the hop is below one frame.
        """
        require(
            len(self._front_ends) == 1,
            f"A timeline needs members of one front end; this bundle's members have {len(self._front_ends)}. "
            "Predict with the bundle of a single member.",
        )
        fbank = next(iter(self._front_ends.values()))
        frame_ms = fbank.config.frame_shift_ms
        if hop_s is None:
            seconds = round(1000 * USUAL_HOP_S / frame_ms) * fbank.hop_samples
            return fbank, min(seconds, fbank.clip_samples // fbank.hop_samples * fbank.hop_samples)
        hop_frames = round(1000 * hop_s / frame_ms)
        require(hop_frames >= 1, f"A hop of {hop_s} s is less than one frame; give at least {frame_ms / 1000} s.")
        return fbank, hop_frames * fbank.hop_samples

    def _score_windows(self, recording: Blocks, hop_frames: int | None) -> list[np.ndarray]:
        """Return each member's probabilities of each window, float32 [W, C].

        If `hop_frames` is None, each window starts at the end of the window before it.
        """
        scores: list[list[np.ndarray]] = [[] for _ in self.bundle.members]
        for front_end, fbank in self._front_ends.items():
            windows = cut_windows(fbank, recording, hop_frames or front_end.target_frames)
            while some := list(islice(windows, WINDOWS_AT_ONCE)):
                for number, scores_WC in self.score_windows(front_end, some):
                    scores[number].append(scores_WC)
        return [np.concatenate(rows) for rows in scores]

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The filterbank of each different front end of the members."""
        return tuple(self._front_ends.values())

    def score_windows(self, front_end: FrontEndConfig, windows: Sequence[Window]) -> Iterator[tuple[int, np.ndarray]]:
        """Score windows, of one recording or of many, in one batch.

        Args:
            front_end: front end of the windows.
            windows: windows of `cut_windows`.

        Yields:
            Number of each member with that front end, and its probabilities, float32 [W, C].
        """
        fbank_WTM = torch.stack([window.fbank_TM for window in windows])
        frames_W = torch.tensor([window.num_frames for window in windows])
        numbers = [n for n, member in enumerate(self.bundle.members) if member.front_end == front_end]
        yield from zip(numbers, self._score(fbank_WTM, frames_W, numbers), strict=True)

    def from_fbank(self, fbank_BTM: np.ndarray, num_frames_B: np.ndarray) -> np.ndarray:
        """Return the probabilities of stored filterbanks, float32 [B, C].

        Args:
            fbank_BTM: raw log-mel, float16 or float32, of the front end that all members must share.
            num_frames_B: frames that are not padding.
        """
        everyone = range(len(self.bundle.members))
        return mean_probabilities(
            list(self._score(torch.from_numpy(fbank_BTM), torch.from_numpy(num_frames_B), everyone))
        )

    def _score(
        self, fbank_BTM: torch.Tensor, num_frames_B: torch.Tensor, members: Iterable[int]
    ) -> Iterator[np.ndarray]:
        """Yield the probabilities of a batch by each of some members, float32 [B, C]: the one place that scores."""
        batch_BTM, frames_B = fbank_BTM.to(self.device).float(), num_frames_B.to(self.device)
        for number in members:
            yield member_probabilities(self.bundle.members[number], batch_BTM, frames_B)
