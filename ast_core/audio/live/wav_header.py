"""The header of a WAV stream, which is read from a pipe: nothing can be looked up at its end."""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

from ast_core.audio.live.pcm_stream import PcmFormat, SampleType
from ast_core.audio.truncation import STREAMED
from ast_core.errors import ClipError

MOST_HEADER_BYTES = 1 << 20
"""Longest header: notes and tags may stand before the samples."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_KINDS: dict[tuple[int, int], SampleType] = {
    (_PCM, 8): "u8",
    (_PCM, 16): "s16le",
    (_PCM, 24): "s24le",
    (_PCM, 32): "s32le",
    (_FLOAT, 32): "f32le",
}
"""Types of samples by the format's tag and the bits of a sample."""


class Readable(Protocol):
    """A stream that is read from its beginning."""

    def read(self, count: int, /) -> bytes:
        """Return `count` bytes; fewer only at the end."""


class WavHeader(NamedTuple):
    """What the header says."""

    pcm: PcmFormat
    length: int | None
    """Bytes of the samples; None if the program that wrote the header could not know it."""


def read_wav_header(stream: Readable, beginning: bytes = b"") -> WavHeader:
    """Read a WAV stream up to its first sample.

    Args:
        stream: the stream.
        beginning: its first bytes, if they were read before.

    Raises:
        ClipError: stage `decode`; the header is damaged, or the samples are of a type that is not read.
    """
    head = beginning + stream.read(12 - len(beginning))
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        raise ClipError("decode", "this is no WAV stream: it does not begin with RIFF and WAVE")
    pcm, done = None, 12
    while done < MOST_HEADER_BYTES:
        head = _read(stream, 8)
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            if pcm is None:
                raise ClipError("decode", "the WAV header does not describe its samples")
            return WavHeader(pcm, None if length == 0 or length >= STREAMED else length)
        if length > MOST_HEADER_BYTES:
            break
        content = _read(stream, length + length % 2)
        if name == b"fmt ":
            pcm = _read_format(content)
        done += 8 + len(content)
    raise ClipError("decode", f"the first {MOST_HEADER_BYTES} bytes of the WAV stream have no samples")


def _read(stream: Readable, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise ClipError("decode", "the WAV stream ends within its header")
    return content


def _read_format(content: bytes) -> PcmFormat:
    """Return the format of a chunk `fmt `."""
    if len(content) < 16:
        raise ClipError("decode", "the WAV header does not describe its samples")
    tag, channels, rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", content)
    if tag == _EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack_from("<H", content, 24)  # the subformat begins with the tag that it stands for
    kind = _KINDS.get((tag, bits))
    if kind is None:
        raise ClipError("decode", f"WAV samples of {bits} bits with the tag {tag} are not read; write 16-bit PCM")
    pcm = PcmFormat(rate_hz, channels, kind)
    if frame_bytes != pcm.frame_bytes:
        raise ClipError("decode", f"the WAV header says {frame_bytes} bytes for {channels} samples of {bits} bits")
    return pcm
