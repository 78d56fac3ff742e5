"""Find the recordings in Ogg files: several in a chained one (RFC 3533), of which libsndfile reads the first.

An Ogg file consists of pages: `OggS`, flags, the lengths of up to 255 segments, and the segments. The first page of a
stream has a flag. Streams that are multiplexed, such as sound and video, begin together. A link of a chain begins where
first pages follow other pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from ast_core.audio.file_window import FileWindow
from ast_core.audio.truncation import truncated
from ast_core.errors import ClipError

_MAGIC = b"OggS"
_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4
"""The flags of a stream's first and last page. The second is no promise: many writers never set it."""
_SCAN_BYTES = 1 << 16


@dataclass(frozen=True)
class OggLink:
    """One recording in a file: the pages from its first one to the next link."""

    pages: range
    last_page: range
    ended: bool
    """Whether the last page says that it is the last."""


def find_ogg_links(file: FileWindow) -> list[OggLink]:
    """Return the links of a chain; one for an ordinary file, none if the beginning is missing.

    Raises:
        ClipError: stage `decode`, if a page, or the last packet, is incomplete.
    """
    links: list[OggLink] = []
    place, last, flags, continues = 0, range(0), 0, False
    while (place := _find_page(file, place, last)) < file.size:
        header = file.read(place, _HEADER_BYTES + 255)
        segments = header[_HEADER_BYTES : _HEADER_BYTES + header[26]] if len(header) >= _HEADER_BYTES else b""
        end = place + _HEADER_BYTES + len(segments) + sum(segments)
        if len(header) < _HEADER_BYTES or len(segments) < header[26] or end > file.size:
            raise truncated(file.size, max(end, file.size + 1), "bytes")
        begins = bool(header[5] & _FIRST and (not links or not flags & _FIRST))
        start = place if begins else links[-1].pages.start if links else None
        last, flags, continues, place = range(place, end), header[5], segments[-1:] == b"\xff", end
        if start is not None:
            links[len(links) if begins else -1 :] = [OggLink(range(start, end), last, bool(flags & _LAST))]
    if continues:
        raise ClipError("decode", f"truncated: the last packet continues beyond the {file.size} bytes")
    return links


def mark_end(file: FileWindow, page: range) -> bytes:
    """Return the header of a page, with the flag of a stream's last page."""
    content = bytearray(file.read(page.start, len(page)))
    content[5] |= _LAST
    content[22:26] = bytes(4)
    checksum = 0
    for byte in content:
        checksum = (checksum << 8 & 0xFFFF_FFFF) ^ _CRC[checksum >> 24 ^ byte]
    content[22:26] = checksum.to_bytes(4, "little")
    return bytes(content[:_HEADER_BYTES])


def _crc_table() -> list[int]:
    """Return the table of Ogg's checksum, whose polynomial is zlib's, but whose bits are in the other order."""
    table = []
    for value in range(256):
        remainder = value << 24
        for _ in range(8):
            remainder = (remainder << 1 & 0xFFFF_FFFF) ^ (0x04C1_1DB7 if remainder >> 31 else 0)
        table.append(remainder)
    return table


_CRC = _crc_table()


def _find_page(file: FileWindow, place: int, last: range) -> int:
    """Return the next beginning of a page, which may be cut if it is at `place`; the file's size if no page follows.

    Raises:
        ClipError: stage `decode`, if it is within the `last` page, which was cut and joined with another recording.
    """
    content = file.read(place, len(_MAGIC))
    if content and content == _MAGIC[: len(content)]:
        return place
    place = last.start + 1 if last else place
    while place < file.size:
        content = file.read(place, _SCAN_BYTES)
        found = content.find(_MAGIC)
        if found >= 0 and place + found < last.stop:
            raise truncated(place + found - last.start, len(last), f"bytes of the page at byte {last.start}")
        if found >= 0:
            return place + found
        if len(content) < len(_MAGIC):
            break
        place += len(content) - len(_MAGIC) + 1
    return file.size
