"""Find the frames of MP3 files (and MPEG layers 1 and 2): a stream says its length nowhere but in a Xing header.

libsndfile estimates the length of a file without such a header from its first frame, and ends a joined file at the
first recording's end. So this module counts the frames, and divides joined files into sections.

A frame begins with four bytes: eleven bits of ones, then version, layer, bit rate and sampling rate, from which its
length follows (ISO 11172-3, 13818-3). The first frame of a file may contain a Xing, Info or VBRI header, not sound:
an addition of encoders that says the number of frames and bytes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ast_core.audio.file_window import FileWindow
from ast_core.audio.truncation import is_unknown, truncated

_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s by version (2 stands for 2.5, too) and layer: ISO 11172-3 and 13818-3."""
_RATES_HZ = (44_100, 48_000, 32_000)
_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]", re.DOTALL)
_PROBE_BYTES, _PROBE_FRAMES = 4096, 4
"""A stream that was cut off its beginning starts within a frame; this many frames in a row are no coincidence."""
_XING = (b"Xing", b"Info")
_HEAD_BYTES = 56
"""Bytes of a frame in which the numbers of a Xing or VBRI header are."""
_SCAN_BYTES = 1 << 16
_ID3V1_BYTES = 128


@dataclass(frozen=True)
class _Header:
    """The header of a frame."""

    size: int
    samples: int
    kind: tuple[int, int, int, bool]
    """Version (3 stands for 2.5), layer, sampling rate, mono: frames of one recording have them in common."""
    layer: int
    rate_hz: int
    xing_place: int
    """The place of a Xing header in the frame, behind the side information."""


@dataclass(frozen=True)
class _Tag:
    """What a Xing or VBRI header says. It is in a frame of its own, and 0 stands for what it does not say."""

    frames: int
    length: int
    """Bytes, with the header's frame."""
    frames_place: int
    """The place of the number of frames, in the file; 0 if it is missing, or if decoders do not know the header."""
    skipped: bool
    """Whether decoders take the header's frame for a silent one."""


@dataclass
class MpegSection:
    """One recording in a file: its frames."""

    kind: tuple[int, int, int, bool]
    start: int
    tag: _Tag | None
    pieces: list[range] = field(default_factory=list)
    """Where the frames are, with the tag's. Damaged bytes and other tags between them are left out."""
    frames: int = 0
    """Number of frames with samples."""
    complete: bool = True
    """Whether all frames were counted."""

    @property
    def rate_hz(self) -> int:
        """The sampling rate."""
        return self.kind[2]

    @property
    def has_number(self) -> bool:
        """Whether the Xing header has the number of frames, so that decoders do not estimate it from the size."""
        return self.tag is not None and self.tag.frames_place > 0

    def add(self, place: int, size: int, frames: int) -> None:
        """Add a frame."""
        self.frames += frames
        if self.pieces and self.pieces[-1].stop == place:
            self.pieces[-1] = range(self.pieces[-1].start, place + size)
        else:
            self.pieces.append(range(place, place + size))

    def has_true_tag(self) -> bool:
        """Return whether a decoder that believes the Xing header reads all frames, and nothing else."""
        return (
            self.tag is not None
            and not self.tag.skipped
            and len(self.pieces) == 1
            and (self.tag.frames == self.frames or (not self.complete and self.tag.frames > self.frames))
        )

    def corrected(self) -> list[range | bytes]:
        """Return the frames, with their number in the Xing header."""
        if self.tag is None or not self.has_number:
            return list(self.pieces)
        first, place = self.pieces[0], self.tag.frames_place
        number = self.frames.to_bytes(4, "big")
        return [range(first.start, place), number, range(place + 4, first.stop), *self.pieces[1:]]

    def check_complete(self, end: int) -> None:
        """Raise ClipError if there are fewer bytes up to `end`, or fewer frames, than the Xing header says."""
        if self.tag is None:
            return
        available, promised = end - self.start, self.tag.frames
        if self.tag.length > available and not is_unknown(self.tag.length, available):
            raise truncated(available, self.tag.length, "bytes")
        tolerated = 0 if self.tag.length else 1  # some encoders count the header's frame
        if self.complete and promised - self.frames > tolerated and not is_unknown(promised, available):
            raise truncated(self.frames, promised, "frames")


def find_mpeg_sections(file: FileWindow, part: range, seconds: float | None) -> list[MpegSection]:
    """Return the recordings in a file; none if it is no MPEG audio, or of a bit rate that its frames do not say.

    Args:
        file: the file, which is read at any place.
        part: where the frames are, for example in a WAV file.
        seconds: how much will be decoded. Frames beyond that are not looked for. None is the complete file.

    Raises:
        ClipError: stage `decode`, if a recording is provably shorter than its Xing header says.
    """
    sections: list[MpegSection] = []
    left_s = math.inf if seconds is None else seconds
    for place, header, head in _walk(file, part.start, part.stop):
        tag = _find_tag(head, place, header) if header.layer == 3 else None
        if not sections or tag or header.kind != sections[-1].kind:
            if sections:
                sections[-1].check_complete(place)
            sections.append(MpegSection(header.kind, place, tag))
        if not (tag and tag.skipped):
            sections[-1].add(place, header.size, frames=0 if tag else 1)
        left_s -= header.samples / header.rate_hz
        if left_s < 0:
            sections[-1].complete = False
            break
    if sections:
        sections[-1].check_complete(part.stop)
    return [section for section in sections if section.frames]


def _walk(file: FileWindow, start: int, size: int) -> Iterator[tuple[int, _Header, bytes]]:
    """Yield place, header and beginning of each complete frame from `start` to `size`."""
    place, last = skip_tags(file, start), None
    search_end = min(size, place + _PROBE_BYTES)
    while place + 4 <= size:
        head = file.read(place, _HEAD_BYTES)
        header = _parse(head[:4])
        if header and ((last and header.kind == last[1].kind) or _is_followed(file, size, place, header, 2)):
            if last:
                yield last
            if place + header.size > size:
                return
            last, place, search_end = (place, header, head), place + header.size, size
        elif (end := skip_tags(file, place)) > place:
            place = end
        else:
            found = _find_sync(file, size, last[0] + 1 if last else place + 1, search_end)
            if last and found >= place:  # otherwise the frame was cut where another recording was joined
                yield last
            place, last = found, None
    if last:
        yield last


def _is_followed(file: FileWindow, size: int, place: int, header: _Header, frames: int) -> bool:
    """Return whether a frame is the first of `frames` frames of one kind, or the file ends before."""
    kind = header.kind
    for _ in range(frames - 1):
        place += header.size
        if place >= size or skip_tags(file, place) > place:
            return True
        following = _parse(file.read(place, 4))
        if following is None or following.kind != kind:
            return False
        header = following
    return True


def _find_sync(file: FileWindow, size: int, start: int, end: int) -> int:
    """Return the first place from which several frames follow each other; `size` if no place up to `end` is one."""
    while start < end:
        content = file.read(start, _SCAN_BYTES)
        for found in _SYNC.finditer(content):
            place = start + found.start()
            header = _parse(file.read(place, 4))
            if place < end and header and _is_followed(file, size, place, header, _PROBE_FRAMES):
                return place
        if len(content) < 4:
            break
        start += len(content) - 3
    return size


def skip_tags(file: FileWindow, place: int) -> int:
    """Return the place behind the ID3 or APE tags that begin at a place."""
    while True:
        head = file.read(place, 16)
        if head[:3] == b"ID3" and len(head) == 16 and max(head[6:10]) < 0x80:
            size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            place += 10 + size + (10 if head[5] & 0x10 else 0)
        elif head[:3] == b"TAG":
            place += _ID3V1_BYTES
        elif head[:8] == b"APETAGEX":
            place += 32 + int.from_bytes(head[12:16], "little")
        else:
            return place


def _find_tag(head: bytes, place: int, header: _Header) -> _Tag | None:
    """Return what the Xing, Info or VBRI header in a frame's beginning says; None if it has none."""
    if head[36:40] == b"VBRI":
        return _Tag(int.from_bytes(head[50:54], "big"), int.from_bytes(head[46:50], "big"), 0, True)
    xing = header.xing_place
    if head[xing : xing + 4] not in _XING:
        return None
    flags = head[xing + 7]
    numbers = [int.from_bytes(head[xing + at : xing + at + 4], "big") for at in (8, 12)]
    frames = numbers.pop(0) if flags & 1 else 0
    return _Tag(frames, numbers[0] if flags & 2 else 0, place + xing + 8 if flags & 1 else 0, False)


def is_free_format(head: bytes) -> bool:
    """Return whether a frame's first four bytes are those of a stream whose headers do not say the bit rate."""
    with_bit_rate = head[:2] + bytes([head[2] | 0x10]) + head[3:] if len(head) == 4 and head[2] < 0x10 else b""
    return _parse(with_bit_rate) is not None


@functools.lru_cache(1 << 14)
def _parse(head: bytes) -> _Header | None:
    """Return what a frame's first four bytes say; None if they are no header, or the bit rate is free."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = {0: 3, 2: 2, 3: 1}.get(head[1] >> 3 & 3), 4 - (head[1] >> 1 & 3)
    rate, index, padding = head[2] >> 2 & 3, head[2] >> 4, head[2] >> 1 & 1
    if version is None or layer == 4 or rate == 3 or index in {0, 15}:
        return None
    rate_hz = _RATES_HZ[rate] >> (version - 1)
    bits_per_s = 1000 * _KBPS[min(version, 2), layer][index - 1]
    samples = 384 if layer == 1 else 1152 if layer == 2 or version == 1 else 576
    size = (12 * bits_per_s // rate_hz + padding) * 4 if layer == 1 else samples // 8 * bits_per_s // rate_hz + padding
    mono = head[3] >> 6 == 3
    xing_place = 4 + ((17 if mono else 32) if version == 1 else (9 if mono else 17))
    return _Header(size, samples, (version, layer, rate_hz, mono), layer, rate_hz, xing_place)
