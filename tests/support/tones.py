"""Write recordings whose pitch depends on their class, so that any model tells them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def write_tone(path: Path, label: int, seed: int, seconds: float = 0.3) -> Path:
    """Write a tone over noise whose pitch depends on the class."""
    times_N = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise_N = np.random.default_rng(seed).normal(0, 0.05, len(times_N))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * 4**label * times_N) + noise_N, RATE_HZ, subtype="FLOAT")
    return path
