"""Audio file to mono float32 waveform, or `ClipError`.

Decoders read a cut file as a clean shorter clip, so lengths are checked here.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ast_core.audio.truncation import check_complete
from ast_core.errors import ClipError

Waveform = npt.NDArray[np.float32]

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
"""Sampling rates outside these are a damaged header, not audio."""
MAX_AMPLITUDE = 1e6
"""Full scale is 1; int16 scaled floats reach 32768. Beyond this a power spectrum may overflow."""
CANCELLED = 1e-3
"""A mono mix below this share of the channels' peak (-60 dB) means opposite phase; rounding leaves some."""
_BLOCK_FRAMES, _BLOCK_SAMPLES = 1 << 19, 1 << 22
"""Read at once: of any file, and over all channels, of which a header may promise a thousand."""
_RESAMPLER_REACH_S = 0.1
_NO_FILE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO}
_CLIP_FAULTS = _NO_FILE | {errno.EACCES, errno.EPERM}


def load_waveform(path: Path | str, sample_rate_hz: int, max_seconds: float | None = None) -> Waveform:
    """Decode a file, mix it to mono by the mean of its channels, resample it with soxr HQ.

    Args:
        path: any file libsndfile reads (WAV, FLAC, OGG, Opus, MP3, AIFF, ...). Digital silence is accepted.
        sample_rate_hz: rate of the result.
        max_seconds: length beyond which a file is not read; None reads all of it, at four bytes a sample.

    Returns:
        float32 [N], N >= 1, finite, nominally in [-1, 1].

    Raises:
        ClipError: stage `read` (not a regular file, no access, empty), `decode` or `resample`.
        OSError: the disk's fault, not the file's.
    """
    return join_blocks(read_blocks(path, sample_rate_hz, max_seconds), sample_rate_hz, max_seconds)


def join_blocks(blocks: Iterable[Waveform], sample_rate_hz: int, max_seconds: float | None = None) -> Waveform:
    """Blocks as one waveform [N], cut where the reading of it was told to end."""
    parts = list(blocks)
    waveform = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return waveform if max_seconds is None else waveform[: math.ceil(max_seconds * sample_rate_hz)]


def read_blocks(path: Path | str, sample_rate_hz: int, max_seconds: float | None = None) -> Iterator[Waveform]:
    """What `load_waveform` gives, to the bit, in blocks: a day's recording needs no more memory than a minute's.

    Yields float32 [N], N >= 1. With `max_seconds` they may go a little further. Errors are `load_waveform`'s; those
    that only the end of a file shows, such as channels that cancel out, come after the last block.
    """
    with _opened(path) as descriptor:
        check_complete(descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            with soundfile.SoundFile(descriptor, closefd=False) as file:
                yield from _resampled(_mono_blocks(file, max_seconds), file.samplerate, sample_rate_hz)
        except soundfile.SoundFileError as error:
            raise ClipError("decode", getattr(error, "error_string", str(error)).rstrip(". ")) from error


def resample(waveform: Waveform, from_hz: int, to_hz: int) -> Waveform:
    """Resample [N] with soxr HQ; the waveform itself where the rates agree. ClipError where no sample remains."""
    return join_blocks(_resampled([waveform], from_hz, to_hz), to_hz)


def _resampled(blocks: Iterable[Waveform], from_hz: int, to_hz: int) -> Iterator[Waveform]:
    """Resampled blocks: the bits of soxr's one call for everything, whatever the blocks."""
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
    taken, given = 0, 0
    for block in blocks:
        taken += len(block)
        out = stream.resample_chunk(block)
        given += len(out)
        if len(out):
            yield out
    out = stream.resample_chunk(np.empty(0, np.float32), last=True)
    if not given + len(out):
        raise ClipError("resample", f"{taken} samples at {from_hz} Hz are none at {to_hz} Hz")
    if len(out):
        yield out


def _mono_blocks(file: soundfile.SoundFile, max_seconds: float | None) -> Iterator[Waveform]:
    """An open file as mono blocks [N]; ClipError("decode", ...) where it is not whole and sane."""
    rate, promised, channels = file.samplerate, file.frames, file.channels
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise ClipError("decode", f"a sampling rate of {rate} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} are accepted")
    if max_seconds is not None:
        promised = min(promised, math.ceil((max_seconds + _RESAMPLER_REACH_S) * rate))
    weights = np.full(channels, 1 / channels, np.float32)
    size = min(_BLOCK_FRAMES, _BLOCK_SAMPLES // channels)
    done, peak, mono_peak = 0, 0.0, 0.0
    while done < promised:
        block = file.read(min(promised - done, size), dtype="float32", always_2d=True)
        if not len(block):
            break
        highest = max(float(block.max()), -float(block.min()))
        if not highest <= MAX_AMPLITUDE:
            raise ClipError("decode", f"a sample of {highest:g}; audio has finite samples about [-1, 1]")
        mono = block[:, 0] if channels == 1 else block @ weights
        peak = max(peak, highest)
        mono_peak = max(mono_peak, float(mono.max()), -float(mono.min()))
        done += len(block)
        yield mono
    if channels > 1 and peak > 0 and mono_peak <= CANCELLED * peak:
        raise ClipError("decode", f"its {channels} channels cancel out: their mean is silence though they are not")
    if done != promised:
        raise ClipError("decode", f"truncated: {done} of {promised} frames could be read")
    if not promised:
        raise ClipError("decode", "no samples")


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[int]:
    """Descriptor of a regular, non-empty file. Non-blocking, since opening a FIFO would wait for a writer for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise ClipError("read", "the path has a NUL character") from error
    except OSError as error:
        if error.errno not in _CLIP_FAULTS:
            raise
        raise ClipError("read", os.strerror(error.errno or 0)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ClipError("read", "not a regular file")
        if not status.st_size:
            raise ClipError("read", "the file is empty")
        yield descriptor
    finally:
        os.close(descriptor)
