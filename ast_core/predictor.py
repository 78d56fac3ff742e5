"""Waveform of any length to probabilities, by a bundle: each member with its own front end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ast_core.bundle import Bundle
from ast_core.ensemble import mean_probabilities, member_probabilities
from ast_core.fbank import Fbank, fit_length

WINDOWS_AT_ONCE = 16


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

    def probabilities(self, waveform_N: np.ndarray) -> np.ndarray:
        """Clip-level probabilities: the mean over windows of the training length, the last one padded.

        Args:
            waveform_N: float32 [N] at the front end's rate.

        Returns:
            float32 [C].

        Raises:
            ClipError: shorter than one analysis window.
        """
        scores: list[list[np.ndarray]] = [[] for _ in self.bundle.members]
        for front_end, fbank in self._front_ends.items():
            for fbank_WTM in _windows(fbank, waveform_N):
                window_WTM = fbank_WTM.to(self.device)
                for number, member in enumerate(self.bundle.members):
                    if member.front_end == front_end:
                        scores[number].append(member_probabilities(member, window_WTM))
        return mean_probabilities([np.concatenate(rows).mean(axis=0) for rows in scores])

    def from_fbank(self, fbank_BTM: np.ndarray) -> np.ndarray:
        """Probabilities of stored filterbanks: float16 or float32 [B, T, M] to float32 [B, C].

        The members must share the front end that made them.
        """
        tensor_BTM = torch.from_numpy(fbank_BTM).to(self.device).float()
        return mean_probabilities([member_probabilities(member, tensor_BTM) for member in self.bundle.members])


def _windows(fbank: Fbank, waveform_N: np.ndarray) -> Iterator[torch.Tensor]:
    """Windows of the training length, rounded to float16 as shards are, a few at a time: float32 [W, T, M].

    Each is filtered by itself: a day's recording needs no more memory than its waveform.
    """
    frames, hop, num_frames = fbank.config.target_frames, fbank.hop_samples, fbank.num_frames(len(waveform_N))
    # A rest shorter than half a window says little: it counts only when it is all there is.
    firsts = [0, *(first for first in range(frames, num_frames, frames) if num_frames - first >= frames // 2)]
    for start in range(0, len(firsts), WINDOWS_AT_ONCE):
        windows = []
        for first in firsts[start : start + WINDOWS_AT_ONCE]:
            window_N = waveform_N[first * hop : (first + frames - 1) * hop + fbank.window_samples]
            windows.append(fit_length(fbank(torch.from_numpy(window_N)), frames))
        yield torch.stack(windows).half().float()
