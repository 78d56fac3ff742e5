"""Waveform of any length to probabilities, by a bundle: each member with its own front end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.errors import require
from ast_core.weights.bundle import Bundle
from ast_core.weights.ensemble_mean import mean_probabilities, member_probabilities

WINDOWS_AT_ONCE = 16
Blocks = np.ndarray | Iterable[np.ndarray]
"""A recording at the front end's rate: float32 [N], or blocks of it that can be gone through more than once."""


class Predictor:
    """Predicts with a bundle on one device.

    Args:
        bundle: its members are moved to the device.
        device: `cpu` or `cuda`.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle = bundle
        self.device = torch.device(device)
        self._front_ends = {member.front_end: Fbank(member.front_end) for member in bundle.members}
        for member in bundle.members:
            member.model.to(self.device)

    def probabilities(self, recording: Blocks) -> np.ndarray:
        """Clip-level probabilities: the mean over windows of the training length, the last one padded.

        Args:
            recording: float32 [N] at the front end's rate, or blocks of it.

        Returns:
            float32 [C].

        Raises:
            ClipError: shorter than one analysis window.
        """
        return mean_probabilities([scores_WC.mean(axis=0) for scores_WC in self._by_window(recording, None)])

    def timeline(self, recording: Blocks, hop_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities over time: of windows of the training length, one every `hop_s` seconds.

        Args:
            recording: float32 [N] at the front end's rate, or blocks of it.
            hop_s: seconds from one window's start to the next one's.

        Returns:
            The windows' starts in seconds, float64 [W], and their probabilities, float32 [W, C].

        Raises:
            UserError: members of different front ends, whose windows are not the same; or a hop under one frame.
            ClipError: shorter than one analysis window.
        """
        require(len(self._front_ends) == 1, "A timeline needs members of one front end; predict with each by itself.")
        fbank = next(iter(self._front_ends.values()))
        hop_frames = round(1000 * hop_s / fbank.config.frame_shift_ms)
        require(hop_frames >= 1, f"A hop of {hop_s} s is less than one frame; give more.")
        scores_WC = mean_probabilities(self._by_window(recording, hop_frames))
        hop_samples = hop_frames * fbank.hop_samples
        return np.arange(len(scores_WC)) * hop_samples / fbank.config.sample_rate_hz, scores_WC

    def _by_window(self, recording: Blocks, hop_frames: int | None) -> list[np.ndarray]:
        """Each member's probabilities of each window, float32 [W, C]; None for windows end to end."""
        scores: list[list[np.ndarray]] = [[] for _ in self.bundle.members]
        for front_end, fbank in self._front_ends.items():
            for fbank_WTM, num_frames_W in _windows(fbank, recording, hop_frames or front_end.target_frames):
                window_WTM, frames_W = fbank_WTM.to(self.device), num_frames_W.to(self.device)
                for number, member in enumerate(self.bundle.members):
                    if member.front_end == front_end:
                        scores[number].append(member_probabilities(member, window_WTM, frames_W))
        return [np.concatenate(rows) for rows in scores]

    def from_fbank(self, fbank_BTM: np.ndarray, num_frames_B: np.ndarray) -> np.ndarray:
        """Probabilities of stored filterbanks: float16 or float32 [B, T, M], frames [B], to float32 [B, C].

        The members must share the front end that made them.
        """
        tensor_BTM = torch.from_numpy(fbank_BTM).to(self.device).float()
        frames_B = torch.from_numpy(num_frames_B).to(self.device)
        members = self.bundle.members
        return mean_probabilities([member_probabilities(member, tensor_BTM, frames_B) for member in members])


def _windows(fbank: Fbank, recording: Blocks, hop_frames: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows of the training length, rounded to float16 as shards are, a few at a time.

    Yields float32 [W, T, M] and the frames that are not padding [W].
    """
    frames = fbank.config.target_frames
    cuts = _cuts(fbank, [recording] if isinstance(recording, np.ndarray) else recording, hop_frames)
    while some := list(islice(cuts, WINDOWS_AT_ONCE)):
        windows = [fit_length(fbank(torch.from_numpy(cut_N)), frames) for cut_N in some]
        yield torch.stack(windows).half().float(), torch.tensor([fbank.num_frames(len(cut_N)) for cut_N in some])


def _cuts(fbank: Fbank, blocks: Iterable[np.ndarray], hop_frames: int) -> Iterator[np.ndarray]:
    """The samples of each window; of the recording, no more is held than a window and a block."""
    frames, hop = fbank.config.target_frames, hop_frames * fbank.hop_samples
    whole = (frames - 1) * fbank.hop_samples + fbank.window_samples
    held_N, start, count = np.empty(0, np.float32), 0, 0  # the next window begins at `start`, or beyond what is held
    for block_N in blocks:
        held_N, start = np.concatenate([held_N[start:], block_N]), max(0, start - len(held_N))
        while len(held_N) - start >= whole:
            yield held_N[start : start + whole]
            start, count = start + hop, count + 1
    rest_N = held_N[start:]
    # A rest shorter than half a window says little: it counts only when it is all there is.
    while not count or fbank.num_frames(len(rest_N)) >= frames // 2:
        yield rest_N
        rest_N, count = rest_N[hop:], count + 1
