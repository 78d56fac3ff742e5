"""Read an audio file as a mono float32 waveform, or raise `ClipError`."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import operator
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr

from ast_core.audio.codecs import Samples, decode
from ast_core.errors import ClipError

Waveform = npt.NDArray[np.float32]

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
"""Range of accepted sampling rates; a rate outside it means a damaged header."""
MAX_AMPLITUDE = 1e6
"""Largest accepted sample. Full scale is 1; floats in int16's scale reach 32768. Larger power spectra may overflow."""
PCM = (np.int16, np.int32)
"""Types of integer samples whose full scale is known."""
CANCELLED = 1e-3
"""Share of the channels' peak (-60 dB) below which a mono mix means channels in opposite phase, plus rounding."""
_RESAMPLER_REACH_S = 0.1
"""Seconds that are read beyond `max_seconds`, since the resampler's filter looks ahead."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FILE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO}
_CLIP_FAULTS = _NO_FILE | {errno.EACCES, errno.EPERM}


def load_waveform(path: Path | str, sample_rate_hz: int, max_seconds: float | None = None) -> Waveform:
    """Decode a file, mix it to mono by the mean of its channels, and resample it with soxr HQ.

    Args:
        path: any file that libsndfile reads (WAV, FLAC, OGG, Opus, MP3, AIFF, ...), with the extra `ffmpeg` also m4a,
            aac, wma, webm and the like. It is read to its end. Digital silence is accepted.
        sample_rate_hz: sampling rate of the result.
        max_seconds: length to read at most; None reads the complete file, at four bytes a sample.

    Returns:
        float32 [N], N >= 1, finite, nominally in [-1, 1].

    Raises:
        ClipError: stage `read` (not a regular file, no access, empty), `decode` or `resample`.
        OSError: the fault of the disk, not of the file.
    """
    return join_blocks(read_blocks(path, sample_rate_hz, max_seconds), sample_rate_hz, max_seconds)


def join_blocks(blocks: Iterable[Waveform], sample_rate_hz: int, max_seconds: float | None = None) -> Waveform:
    """Join blocks to one waveform [N], cut at `max_seconds`."""
    parts = list(blocks)
    waveform = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return waveform if max_seconds is None else waveform[: math.ceil(max_seconds * sample_rate_hz)]


def read_blocks(source: Path | str | int, sample_rate_hz: int, max_seconds: float | None = None) -> Iterator[Waveform]:
    """Yield the waveform of `load_waveform`, bit by bit, in blocks, so that a day needs no more memory than a minute.

    The blocks are float32 [N], N >= 1. With `max_seconds` they may go a little further. Errors are those of
    `load_waveform`. Errors that only the end of a file shows, such as channels that cancel out, are raised after the
    last block.

    Args:
        source: path of a file, or the descriptor of an open regular file that begins with the recording.
        sample_rate_hz: sampling rate of the result.
        max_seconds: length to read at most; None reads the complete recording.
    """
    seconds = None if max_seconds is None else max_seconds + _RESAMPLER_REACH_S
    with _open_regular(source) as descriptor:
        yield from convert_blocks(decode(descriptor, seconds), sample_rate_hz)


def convert_blocks(blocks: Iterable[tuple[int, Samples]], sample_rate_hz: int) -> Iterator[Waveform]:
    """Mix blocks to mono and resample them, each as soon as it is there, as `read_blocks` does with those of a file.

    Args:
        blocks: sampling rate and samples, float32 [N, channels], of each block.
        sample_rate_hz: sampling rate of the result.
    """
    for rate_hz, run in itertools.groupby(_mono_blocks(blocks), key=operator.itemgetter(0)):  # joined ones may differ
        yield from _resample_blocks((mono for _, mono in run), rate_hz, sample_rate_hz)


def resample(waveform: Waveform, from_hz: int, to_hz: int) -> Waveform:
    """Resample [N] with soxr HQ; ClipError if no sample remains. Equal rates return the waveform itself."""
    return join_blocks(_resample_blocks([waveform], from_hz, to_hz), to_hz)


def convert_samples(samples: npt.NDArray[np.float32], rate_hz: int, sample_rate_hz: int) -> Waveform:
    """Mix samples in memory to mono and resample them, as `load_waveform` does with those of a file.

    Args:
        samples: float32 [N] or [N, channels], nominally in [-1, 1].
        rate_hz: their sampling rate.
        sample_rate_hz: sampling rate of the result.

    Returns:
        float32 [N], N >= 1, finite.

    Raises:
        ClipError: stage `decode` (no samples, samples that are not finite or too large, channels that cancel out, an
            absurd rate) or `resample`.
    """
    if not samples.size:
        raise ClipError("decode", "there are no samples")
    samples_NC = samples if samples.ndim == 2 else samples[:, None]
    ((_, mono_N),) = _mono_blocks([(rate_hz, samples_NC)])
    return resample(mono_N, rate_hz, sample_rate_hz)


def find_full_scale(kind: npt.DTypeLike, samples: npt.NDArray[np.float32]) -> float | None:
    """Return the value of samples that stands for full scale, which is 1 in a waveform.

    Args:
        kind: type that the samples had.
        samples: the same numbers as float32, of any shape.

    Returns:
        The value, or None if it is unknown: numbers that are all integers, some above 1, of a type that has no full
        scale, such as int64 or float32.
    """
    if kind in PCM:
        return float(np.iinfo(np.dtype(kind)).max) + 1
    unknown = np.abs(samples).max(initial=0) > 1 and bool((samples == np.rint(samples)).all())
    return None if unknown else 1.0


def _resample_blocks(blocks: Iterable[Waveform], from_hz: int, to_hz: int) -> Iterator[Waveform]:
    """Resample blocks; the result has the bits of one soxr call for the complete waveform."""
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
    taken, yielded = 0, 0
    for block in blocks:
        taken += len(block)
        out = stream.resample_chunk(block)
        yielded += len(out)
        if len(out):
            yield out
    out = stream.resample_chunk(np.empty(0, np.float32), last=True)
    if not yielded + len(out):
        raise ClipError("resample", f"{taken} samples at {from_hz} Hz are less than one sample at {to_hz} Hz")
    if len(out):
        yield out


def _mono_blocks(blocks: Iterable[tuple[int, Samples]]) -> Iterator[tuple[int, Waveform]]:
    """Mix blocks [N, channels] to mono [N]; ClipError("decode", ...) if their values or sampling rates are no audio."""
    peak, mono_peak, most_channels = 0.0, 0.0, 0
    for rate_hz, block in blocks:
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            limits = f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are accepted"
            raise ClipError("decode", f"the sampling rate is {rate_hz} Hz; {limits}")
        highest = max(float(block.max()), -float(block.min()))
        if not highest <= MAX_AMPLITUDE:
            raise ClipError("decode", f"a sample is {highest:g}; audio has finite samples in about [-1, 1]")
        channels = block.shape[1]
        mono = block[:, 0] if channels == 1 else block @ np.full(channels, 1 / channels, np.float32)
        peak = max(peak, highest)
        mono_peak = max(mono_peak, float(mono.max()), -float(mono.min()))
        most_channels = max(most_channels, channels)
        yield rate_hz, mono
    if most_channels > 1 and peak > 0 and mono_peak <= CANCELLED * peak:
        raise ClipError("decode", f"the {most_channels} channels cancel out: their mean is silent, they are not")
    if not most_channels:
        raise ClipError("decode", "the file has no samples")


@contextlib.contextmanager
def _open_regular(source: Path | str | int) -> Iterator[int]:
    """Open a regular, non-empty file and yield its descriptor; ClipError("read", ...) if it is another kind of file."""
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer forever.
        descriptor = os.dup(source) if isinstance(source, int) else os.open(source, _READ)
    except ValueError as error:
        raise ClipError("read", "the path has a NUL character") from error
    except OSError as error:
        if error.errno not in _CLIP_FAULTS:
            raise
        raise ClipError("read", os.strerror(error.errno or 0)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ClipError("read", "the path is not a regular file")
        if not status.st_size:
            raise ClipError("read", "the file is empty")
        yield descriptor
    finally:
        os.close(descriptor)
