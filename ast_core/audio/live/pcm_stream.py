"""PCM samples that arrive in pieces of any size: bytes in, the model's waveform out.

Shapes: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr

from ast_core.audio.waveform import MAX_AMPLITUDE, MAX_RATE_HZ, MIN_RATE_HZ, Waveform
from ast_core.errors import ClipError

SampleType = Literal["u8", "s16le", "s24le", "s32le", "f32le"]
"""Types of samples, by the names that FFmpeg has for them."""
SAMPLE_BYTES: dict[SampleType, int] = {"u8": 1, "s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4}
MOST_CHANNELS = 64


@dataclass(frozen=True)
class PcmFormat:
    """What the bytes of a PCM stream mean."""

    rate_hz: int
    channels: int = 1
    kind: SampleType = "s16le"

    def __post_init__(self) -> None:
        """Raise ClipError("decode", ...) for a rate or a number of channels that no audio has."""
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            limits = f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are accepted"
            raise ClipError("decode", f"the sampling rate is {self.rate_hz} Hz; {limits}")
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise ClipError("decode", f"there are {self.channels} channels; 1 to {MOST_CHANNELS} are accepted")

    @property
    def frame_bytes(self) -> int:
        """Bytes of a sample of all channels."""
        return self.channels * SAMPLE_BYTES[self.kind]


class PcmStream:
    """A PCM stream as the waveform that `load_waveform` makes of a file with the same samples.

    Args:
        pcm: what the bytes mean.
        sample_rate_hz: sampling rate of the waveform.
    """

    def __init__(self, pcm: PcmFormat, sample_rate_hz: int) -> None:
        self._pcm, self._rest = pcm, b""
        self._resampler = None
        if pcm.rate_hz != sample_rate_hz:
            self._resampler = soxr.ResampleStream(pcm.rate_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")

    def add(self, content: bytes) -> Waveform:
        """Return the waveform of further bytes, float32 [N]; N is 0 while the resampler needs more of them.

        Raises:
            ClipError: stage `decode`; a sample is not finite, or too large for audio.
        """
        content = self._rest + content if self._rest else content
        whole = len(content) - len(content) % self._pcm.frame_bytes
        self._rest = content[whole:]
        mono_N = self._mix(_read_samples(content[:whole], self._pcm.kind))
        if self._resampler is None or not len(mono_N):
            return mono_N
        resampled_N: Waveform = self._resampler.resample_chunk(mono_N)
        return resampled_N

    def finish(self) -> Waveform:
        """Return the last samples, float32 [N].

        Raises:
            ClipError: stage `decode`; the stream ends within a sample.
        """
        if self._rest:
            size = self._pcm.frame_bytes
            raise ClipError("decode", f"the last {len(self._rest)} bytes are less than one sample of {size} bytes")
        if self._resampler is None:
            return np.empty(0, np.float32)
        resampled_N: Waveform = self._resampler.resample_chunk(np.empty(0, np.float32), last=True)
        return resampled_N

    def _mix(self, samples_N: npt.NDArray[np.float32]) -> Waveform:
        """Return the mean of the channels."""
        highest = max(float(samples_N.max(initial=0)), -float(samples_N.min(initial=0)))
        if not highest <= MAX_AMPLITUDE:
            raise ClipError("decode", f"a sample is {highest:g}; audio has finite samples in about [-1, 1]")
        channels = self._pcm.channels
        if channels == 1:
            return samples_N
        mixed_N: Waveform = samples_N.reshape(-1, channels) @ np.full(channels, 1 / channels, np.float32)
        return mixed_N


def _read_samples(content: bytes, kind: SampleType) -> npt.NDArray[np.float32]:
    """Return the samples of complete bytes, float32 with full scale 1."""
    if kind == "f32le":
        return np.frombuffer(content, "<f4").astype(np.float32)
    if kind == "u8":
        return (np.frombuffer(content, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if kind == "s24le":  # the upper three bytes of a 32-bit sample
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        content, kind = wide.tobytes(), "s32le"
    bits = 8 * SAMPLE_BYTES[kind]
    return np.frombuffer(content, f"<i{bits // 8}").astype(np.float32) / np.float32(2 ** (bits - 1))
