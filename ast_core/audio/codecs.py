"""Decode an open file with libsndfile, or with FFmpeg if libsndfile does not know the format."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soundfile

from ast_core.audio.byte_view import ByteView
from ast_core.audio.chunk_headers import find_samples
from ast_core.audio.ffmpeg_decoder import decode_with_ffmpeg
from ast_core.audio.file_window import FileWindow
from ast_core.audio.sections import Section, find_sections
from ast_core.audio.truncation import truncated
from ast_core.errors import ClipError

Samples = npt.NDArray[np.float32]

_BLOCK_FRAMES, _BLOCK_SAMPLES = 1 << 19, 1 << 22
"""Frames, and samples of all channels, that are read at a time: a false header may promise a thousand channels."""

_LAST_FRAMES = 64
_NO_SAMPLES = "No 'data' chunk"
"""libsndfile's reason for WAV files without samples, and for some whose chunks are in another order."""
_REASONS = {
    "possibly a pipe": "the MPEG stream is too short or damaged",  # libsndfile calls it "not a regular file"
    "SF_INFO struct incomplete": "the header says no usable sampling rate or number of channels",
}


class _SequentialFile(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from its beginning to its end.

    soundfile asks a seekable file for its place, and sets it, at each read. A FLAC file of unknown length cannot do it.
    """

    def seekable(self) -> bool:
        """Return False."""
        return False


def decode(descriptor: int, seconds: float | None) -> Iterator[tuple[int, Samples]]:
    """Yield the sampling rate and the samples, float32 [N, channels], of each block of a file.

    Args:
        descriptor: the file. Its position changes.
        seconds: length to decode at most; None decodes the complete file.

    Raises:
        ClipError: stage `decode`, if the file is no audio, damaged, or provably shorter than its header says. Blocks
            may come before.
    """
    left_s = seconds
    for section in find_sections(descriptor, seconds):
        if left_s is not None and left_s <= 0:
            return
        for rate_hz, block in _decode_section(descriptor, section, left_s):
            yield rate_hz, block
            if left_s is not None:
                left_s -= len(block) / rate_hz


def _decode_section(descriptor: int, section: Section, seconds: float | None) -> Iterator[tuple[int, Samples]]:
    """Decode a section, with FFmpeg if libsndfile cannot open it."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        file = _SequentialFile(descriptor if section.view is None else section.view, closefd=False)
    except soundfile.SoundFileError as error:
        reason, size = _explain(error), os.fstat(descriptor).st_size
        if _NO_SAMPLES in reason and not find_samples(FileWindow(descriptor, 0, size)):
            raise ClipError("decode", reason) from error  # FFmpeg would look for minutes in a file of zeros
        view = section.view or ByteView(descriptor, [range(size)])
        yield from decode_with_ffmpeg(descriptor, view, seconds, reason)
        return
    promised = file.frames if section.length_known else None
    limit = _smaller(promised, None if seconds is None else math.ceil(seconds * file.samplerate))
    done = 0
    with file:
        try:
            for block in _read_blocks(file, limit):
                done += len(block)
                yield file.samplerate, block
        except soundfile.SoundFileError as error:
            reason = _explain(error)
            if promised is not None:
                reason = f"{done + _count_readable(file, done)} of {promised} frames can be read: {reason}"
            raise ClipError("decode", reason) from error
        finally:
            if section.view is not None and section.view.error is not None:
                raise section.view.error
    if promised is not None and limit is not None and done < limit:
        raise truncated(done, limit, "frames")


def _read_blocks(file: soundfile.SoundFile, limit: int | None) -> Iterator[Samples]:
    """Yield a file's samples [N, channels] up to a number of frames."""
    size, done = min(_BLOCK_FRAMES, _BLOCK_SAMPLES // file.channels), 0
    while limit is None or done < limit:
        block = file.read(size if limit is None else min(limit - done, size), dtype="float32", always_2d=True)
        if not len(block):
            return
        done += len(block)
        yield block


def _explain(error: soundfile.SoundFileError) -> str:
    """Return libsndfile's reason, or a true one in place of those that describe its own state."""
    reason = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(". ")
    return next((true for words, true in _REASONS.items() if words in reason), reason)


def _count_readable(file: soundfile.SoundFile, start: int) -> int:
    """Return how many frames can be read from a frame on; an error in a block hides those before it."""
    count = 0
    with contextlib.suppress(soundfile.SoundFileError):
        file.seek(start)
        while part := len(file.read(_LAST_FRAMES, dtype="float32")):
            count += part
    return count


def _smaller(first: int | None, second: int | None) -> int | None:
    """Return the smaller number; None stands for no limit."""
    return min((number for number in (first, second) if number is not None), default=None)
