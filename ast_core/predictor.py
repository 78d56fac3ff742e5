"""Waveform of any length to probabilities, by a bundle: each member with its own front end."""

from __future__ import annotations

import numpy as np
import torch

from ast_core.bundle import Bundle, Member
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
        windows = {front_end: _windows(fbank, waveform_N) for front_end, fbank in self._front_ends.items()}
        scores = [self._windowed(member, windows[member.front_end]) for member in self.bundle.members]
        return mean_probabilities(scores)

    def from_fbank(self, fbank_BTM: np.ndarray) -> np.ndarray:
        """Probabilities of stored filterbanks: float16 or float32 [B, T, M] to float32 [B, C].

        The members must share the front end that made them.
        """
        tensor_BTM = torch.from_numpy(fbank_BTM).to(self.device).float()
        return mean_probabilities([member_probabilities(member, tensor_BTM) for member in self.bundle.members])

    def _windowed(self, member: Member, fbank_WTM: torch.Tensor) -> np.ndarray:
        chunks = fbank_WTM.to(self.device).split(WINDOWS_AT_ONCE)
        scores_WC = np.concatenate([member_probabilities(member, chunk) for chunk in chunks])
        mean_C: np.ndarray = scores_WC.mean(axis=0)
        return mean_C


def _windows(fbank: Fbank, waveform_N: np.ndarray) -> torch.Tensor:
    """Windows of the training length, rounded to float16 as shards are: float32 [W, T, M]."""
    frames = fbank.config.target_frames
    fbank_TM = fbank(torch.from_numpy(waveform_N))
    # A rest shorter than half a window says little: it counts only when it is all there is.
    firsts = [first for first in range(0, len(fbank_TM), frames) if first == 0 or len(fbank_TM) - first >= frames // 2]
    return torch.stack([fit_length(fbank_TM[first : first + frames], frames) for first in firsts]).half().float()
