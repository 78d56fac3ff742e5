"""Make audio files of every kind in memory: with libsndfile, with FFmpeg, and with headers changed by hand."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]

from ast_core.audio.waveform import Waveform, load_waveform
from ast_core.errors import ClipError

RATE_HZ = 16_000
ID3V2 = b"ID3\4\0\0\0\0\x07\x68" + bytes(1000)
ID3V1 = b"TAG" + bytes(125)


def tone(samples: int, seed: int = 0, rate_hz: int = RATE_HZ) -> Waveform:
    """Return a tone with noise, whose pitch depends on the seed."""
    time_N = np.arange(samples) / rate_hz
    noise_N = np.random.default_rng(seed).standard_normal(samples)
    return (0.02 * noise_N + 0.3 * np.sin(2 * np.pi * (400 + 50 * seed) * time_N)).astype(np.float32)


def write(form: str, wave: Waveform, rate_hz: int = RATE_HZ, subtype: str | None = None) -> bytes:
    """Return a file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate_hz, format=form, subtype=subtype)
    return file.getvalue()


class _Pipe:
    """A file that cannot seek, so that FFmpeg cannot write lengths into the header."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, part: bytes) -> int:
        self.content += bytes(part)
        return len(part)


def encode(
    form: str,
    codec: str,
    wave: Waveform,
    rate_hz: int = RATE_HZ,
    *,
    pipe: bool = False,
    layout: str = "mono",
    bit_rate: int | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """Return a file that FFmpeg writes, into a pipe if asked."""
    file: Any = _Pipe() if pipe else io.BytesIO()
    with av.open(file, "w", format=form, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate_hz, options=codec_options or {})
        stream.layout = layout
        if bit_rate:
            stream.bit_rate = bit_rate
        formats = stream.codec_context.codec.audio_formats
        if formats:
            stream.format = formats[0].name
        frame = av.AudioFrame.from_ndarray(np.stack([wave] * (1 + (layout == "stereo"))), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        resampler = av.AudioResampler(
            format=stream.format.name, layout=layout, rate=rate_hz, frame_size=stream.codec_context.frame_size or 1024
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return bytes(file.content) if pipe else file.getvalue()


def decode(content: bytes) -> Waveform:
    """Return what FFmpeg decodes, mono, at the file's own rate."""
    with av.open(io.BytesIO(content)) as container:
        resampler = av.AudioResampler(format="fltp")
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        samples = np.concatenate([frame.to_ndarray() for frame in [*frames, *resampler.resample(None)]], 1)
    return samples.mean(0).astype(np.float32)


def load(folder: Path, content: bytes, rate_hz: int = RATE_HZ, max_seconds: float | None = None) -> Waveform:
    """Return what the product decodes. The name says nothing about the content."""
    path = folder / "recording.bin"
    path.write_bytes(content)
    return load_waveform(path, rate_hz, max_seconds)


def refusal(folder: Path, content: bytes, rate_hz: int = RATE_HZ) -> str:
    """Return why the product refuses a file."""
    with pytest.raises(ClipError) as refused:
        load(folder, content, rate_hz)
    assert refused.value.stage == "decode"
    return refused.value.reason


def patch(content: bytes, *fields: tuple[int, str, int]) -> bytes:
    """Return a file with other values at places: (place, format of `struct`, value)."""
    changed = bytearray(content)
    for place, form, value in fields:
        struct.pack_into(form, changed, place, value)
    return bytes(changed)
