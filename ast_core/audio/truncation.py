"""Find files that are shorter than their own header says. Decoders read such a file as a shorter clip without error."""

from __future__ import annotations

import os

from ast_core.errors import ClipError


def check_complete(descriptor: int) -> None:
    """Raise ClipError("decode", "truncated: ...") if a file ends before the place that its header says."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 28, 0)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        promised = _wav_end(descriptor, size)
    elif head[:4] == b"FORM":
        promised = 8 + int.from_bytes(head[4:8], "big")
    elif head[:4] == b".snd" and head[8:12] != b"\xff\xff\xff\xff":
        promised = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    elif head[:4] == b"RF64":
        promised = 8 + int.from_bytes(head[20:28], "little")
    elif head[:4] == b"riff":  # Sony Wave64
        promised = int.from_bytes(head[16:24], "little")
    elif head[:4] == b"OggS":
        _check_ogg_end(descriptor, size)
        return
    else:
        promised = _mp3_end(descriptor)
    if promised > size:
        raise ClipError("decode", f"truncated: {size} of {promised} bytes")


def _wav_end(descriptor: int, size: int) -> int:
    """Return where the data chunk ends by its header; 0 if a streaming writer did not fill in the length."""
    place = 12
    while place + 8 <= size:
        chunk = os.pread(descriptor, 8, place)
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return 0 if length in (0, 0x7FFFFFFF, 0xFFFFFFFF) else place + 8 + length
        place += 8 + length + length % 2
    return 0


def _check_ogg_end(descriptor: int, size: int) -> None:
    """Raise ClipError unless the last page is complete and ends its stream (RFC 3533: flag 4, at most 64 KiB)."""
    tail = os.pread(descriptor, 65_536, max(0, size - 65_536))
    page = tail[tail.rfind(b"OggS") :]
    complete = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not (page[:4] == b"OggS" and complete and page[5] & 4):
        raise ClipError("decode", "truncated: the last page does not end the stream")


def _mp3_end(descriptor: int) -> int:
    """Return where an MP3 file ends by its Xing or Info header; 0 if it has no such header."""
    head = os.pread(descriptor, 10, 0)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    frame = os.pread(descriptor, 64, start)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return 0
    place = max(frame.find(b"Xing", 4, 40), frame.find(b"Info", 4, 40))
    flags = int.from_bytes(frame[place + 4 : place + 8], "big") if place > 0 else 0
    offset = place + 8 + 4 * (flags & 1)
    return start + int.from_bytes(frame[offset : offset + 4], "big") if flags & 2 else 0
