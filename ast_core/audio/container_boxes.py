"""Refuse cut MP4, Matroska, WebM, ASF and AVI files: FFmpeg reads what is left of them without an error.

Each consists of elements with a name and a length: boxes (ISO 14496-12), EBML elements (RFC 8794, Matroska: RFC 9559),
objects (Microsoft's Advanced Systems Format, section 3) and RIFF chunks.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ast_core.audio.truncation import is_unknown, truncated
from ast_core.errors import ClipError

_INDEX = {b"moov", b"moof"}
_EBML_NAME, _EBML_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_EBML_NAMES = {
    _EBML_NAME,
    _EBML_SEGMENT,
    b"\x11\x4d\x9b\x74",  # SeekHead
    b"\x15\x49\xa9\x66",  # Info
    b"\x16\x54\xae\x6b",  # Tracks
    b"\x1f\x43\xb6\x75",  # Cluster
    b"\x1c\x53\xbb\x6b",  # Cues
    b"\x10\x43\xa7\x70",  # Chapters
    b"\x12\x54\xc3\x67",  # Tags
    b"\x19\x41\xa4\x69",  # Attachments
    b"\xec",  # Void
    b"\xbf",  # CRC-32
}
"""Elements of Matroska's two upper levels (RFC 9559). Other bytes behind the segment are no part of the file."""
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_INDEXES = {
    bytes.fromhex("90080033b1e5cf1189f400a0c90349cb"),
    bytes.fromhex("d329e2d6da35d111903400a0c90349be"),
    bytes.fromhex("f803b1fead12644c840f2a1d2f7ad48c"),
    bytes.fromhex("d03fb73c4a0c0348953dedf7b6228f0c"),
}
"""ASF's objects behind the data: simple index, index, media object index, timecode index."""
_ASF_EMPTY_DATA = 50
"""Bytes of ASF's data object without packets, which is what a stream says."""


class Element(NamedTuple):
    """A part of a container."""

    name: bytes
    start: int
    length: int
    """Bytes from `start`; 0 if it is unknown."""


def check_container(descriptor: int, size: int) -> None:
    """Raise ClipError("decode", ...) if a file is shorter than its header says, or is joined of several recordings."""
    head = os.pread(descriptor, 16, 0)
    if head[:4] == _EBML_NAME:
        elements = _ebml_elements(descriptor, size)
    elif head == _ASF:
        elements = _asf_objects(descriptor, size)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        elements = iter([Element(b"RIFF", 0, 8 + int.from_bytes(head[4:8], "little"))])
    elif head[4:8] in {b"ftyp", *_INDEX, b"mdat", b"wide", b"free", b"skip"}:
        elements = _boxes(descriptor, size)
    else:
        return
    names = []
    for element in elements:
        available = size - element.start
        if element.length > available and not is_unknown(element.length, available):
            raise truncated(size, element.start + element.length, "bytes")
        names.append(element.name)
    if b"ftyp" in names and not _INDEX & set(names):
        raise ClipError("decode", "the index (moov) of this MP4 file is missing: its recording was cut off")
    if names.count(b"moov") > 1 or names.count(_ASF) > 1:  # FFmpeg reads on in WebM, but not in these
        raise ClipError("decode", "several recordings are joined in this file; split it at their beginnings")


def _boxes(descriptor: int, size: int) -> Iterator[Element]:
    """Yield each box of the top level (ISO 14496-12)."""
    place = 0
    while place + 8 <= size:
        length, name = struct.unpack(">I4s", os.pread(descriptor, 8, place))
        if length == 1 and place + 16 <= size:
            (length,) = struct.unpack(">Q", os.pread(descriptor, 8, place + 8))
        if (0 < length < 8) or not re.fullmatch(rb"[ -~\xa9]{4}", name):
            return
        yield Element(name, place, length)
        place += length or size  # 0 is a box that goes to the end


def _ebml_elements(descriptor: int, size: int) -> Iterator[Element]:
    """Yield the elements of the two upper levels (RFC 8794) up to one, other than the segment, of unknown length."""
    place = 0
    while place + 12 <= size:
        head = os.pread(descriptor, 12, place)
        name_bytes = _count_bytes(head)
        length_bytes = _count_bytes(head[name_bytes:])
        if not name_bytes or not length_bytes:
            return
        name = head[:name_bytes]
        if name not in _EBML_NAMES:
            return
        ones = (1 << 7 * length_bytes) - 1
        length = int.from_bytes(head[name_bytes : name_bytes + length_bytes], "big") & ones
        start = place + name_bytes + length_bytes
        if length == ones and name != _EBML_SEGMENT:
            return
        yield Element(name, start, 0 if length == ones else length)
        place = start if name == _EBML_SEGMENT else start + length


def _count_bytes(content: bytes) -> int:
    """Return how many bytes a number of variable length has, which its leading zeros say; 0 if it is no number."""
    return 9 - content[0].bit_length() if content and content[0] else 0


def _asf_objects(descriptor: int, size: int) -> Iterator[Element]:
    """Yield the objects of the top level, header, data and indexes, up to other bytes."""
    place = 0
    while place + 24 <= size:
        name, length = struct.unpack("<16sQ", os.pread(descriptor, 24, place))
        known = name in {_ASF, _ASF_DATA} or name in _ASF_INDEXES
        if not known or length < 24 or (name == _ASF_DATA and length == _ASF_EMPTY_DATA):
            return
        yield Element(name, place, length)
        place += length
