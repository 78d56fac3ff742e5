"""Models that hear tones without any training, and recordings with tones at known times."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import soundfile
import torch
from torch import nn

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.model.transformer import AST
from ast_core.weights.bundle import Bundle
from ast_core.weights.bundle_description import BundleFacts
from ast_core.weights.decisions import Decisions
from ast_core.weights.ensemble_mean import Member

RATE_HZ = 16_000
FRONT_END = FrontEndConfig(target_frames=298, num_mel_bins=32)  # windows of 2.995 s
PITCHES_HZ = {"low": 400.0, "high": 4000.0}
RAMP_S = 0.01
Tone = tuple[str, float, float]
"""Class, onset and offset in seconds."""


class Ear(nn.Module):
    """A detector: is a frame of the window loud in the mel bins of the class?"""

    def forward(self, fbank_BTM: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 2], which are far from 0."""
        padding_BT = torch.arange(fbank_BTM.shape[1]) >= num_frames_B[:, None]
        heard_BTM = fbank_BTM.masked_fill(padding_BT[:, :, None], -20.0)
        level_B2 = torch.stack([heard_BTM[:, :, :16].amax((1, 2)), heard_BTM[:, :, 16:].amax((1, 2))], dim=1)
        return 4 * (level_B2 + 5)


def make_bundle(decisions: Decisions | None = None) -> Bundle:
    """Return a bundle of one ear."""
    member = Member("ear", cast("AST", Ear()), FRONT_END, 0.0, 0.5, "bce", ModelConfig(init="scratch"))
    return Bundle(tuple(PITCHES_HZ), False, (member,), "d", BundleFacts(), decisions)


def save_tones(path: Path, seconds: float, tones: list[Tone], rate_hz: int = RATE_HZ) -> Path:
    """Write a recording of tones in faint noise."""
    rng = np.random.default_rng(0)
    times_N = np.arange(round(seconds * rate_hz)) / rate_hz
    wave_N = rng.normal(0, 1e-4, len(times_N))
    for label, start_s, end_s in tones:
        # A sudden edge would be heard in all bands.
        envelope_N = np.clip(np.minimum(times_N - start_s, end_s - times_N) / RAMP_S, 0, 1)
        wave_N += 0.3 * np.sin(np.pi / 2 * envelope_N) ** 2 * np.sin(2 * np.pi * PITCHES_HZ[label] * times_N)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave_N, rate_hz)
    return path
