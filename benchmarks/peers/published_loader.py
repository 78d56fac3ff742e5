"""Steps of the published loader, from public libraries: decode, resample, mix waveforms, Kaldi filterbank, pad, mask.

Shapes: K channels, N samples, T frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchaudio
from torch.nn import functional
from torchaudio.compliance import kaldi

RATE_HZ = 16_000
FRAMES, BINS = 1024, 128
MEAN, STD = -4.2677393, 4.5689974
FREQ_MASK, TIME_MASK = 48, 192


def load(path: Path) -> torch.Tensor:
    """Return a decoded, resampled mono waveform [1, N]; soundfile decodes, as in torchaudio before it used FFmpeg."""
    import soundfile  # noqa: PLC0415, a machine with a GPU may have none

    samples_NK, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    wave_KN = torch.from_numpy(samples_NK.T.copy())
    wave_1N = wave_KN.mean(dim=0, keepdim=True) if len(wave_KN) > 1 else wave_KN
    return torchaudio.functional.resample(wave_1N, rate_hz, RATE_HZ) if rate_hz != RATE_HZ else wave_1N


def filterbank(wave_1N: torch.Tensor) -> torch.Tensor:
    """Return Kaldi's log-mel of a waveform without its mean, padded with 0 or cut to 1024 frames, [T, M]."""
    fbank_TM = kaldi.fbank(
        wave_1N - wave_1N.mean(), htk_compat=True, sample_frequency=RATE_HZ, use_energy=False, window_type="hanning",
        num_mel_bins=BINS, dither=0.0, frame_shift=10,
    )  # fmt: skip
    return functional.pad(fbank_TM[:FRAMES], (0, 0, 0, max(0, FRAMES - len(fbank_TM))))


def training_sample(paths: Sequence[Path], index: int, rng: np.random.Generator) -> torch.Tensor:
    """Return one training input [T, M], masked and normalised; half of the inputs are mixed with another file."""
    wave_1N = load(paths[index])
    wave_1N = wave_1N - wave_1N.mean()
    if rng.random() < 0.5:
        other_1N = load(paths[rng.integers(len(paths))])
        other_1N = functional.pad(other_1N - other_1N.mean(), (0, max(0, wave_1N.shape[1] - other_1N.shape[1])))
        share = rng.beta(10, 10)
        wave_1N = share * wave_1N + (1 - share) * other_1N[:, : wave_1N.shape[1]]
    fbank_1MT = filterbank(wave_1N).T[None]
    fbank_1MT = torchaudio.transforms.FrequencyMasking(FREQ_MASK)(fbank_1MT)
    fbank_1MT = torchaudio.transforms.TimeMasking(TIME_MASK)(fbank_1MT)
    return (fbank_1MT[0].T - MEAN) / (2 * STD)


def write_table(paths: Sequence[Path], out: Path) -> None:
    """Write the filterbanks of files as a list column of one Parquet file, with pyarrow's defaults."""
    fbanks = [filterbank(load(path)).half().numpy().ravel() for path in paths]
    pq.write_table(list_table([path.stem for path in paths], fbanks), out)


def list_table(names: Sequence[str], fbanks: Sequence[np.ndarray]) -> pa.Table:
    """Return a table of names and a list column of float16."""
    return pa.table({"clip_id": list(names), "fbank": pa.array(fbanks, pa.list_(pa.float16()))})
