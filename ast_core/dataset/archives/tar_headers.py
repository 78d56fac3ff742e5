"""Parse the headers of tar archives: ustar, GNU and PAX, as POSIX.1-2001 and GNU tar's manual describe them."""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from ast_core.dataset.problems import shorten

BLOCK = 512
"""Number of bytes of a header; the bytes of a member are padded to a multiple of it."""
END = bytes(BLOCK)
"""Block that ends an archive; writers put two of them."""
_OCTAL = re.compile(rb"[ ]*([0-7]*)[ \0]*(?:\0.*)?", re.DOTALL)
_RECORD = re.compile(rb"(\d{1,10}) ([^=]+)=")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Header(NamedTuple):
    """The fields of a header that matter here."""

    name: str
    """Name with its folders; bytes that are not UTF-8 are lone surrogates."""
    size: int
    """Number of bytes of the member."""
    type: bytes
    """Type flag, one byte."""


def parse_header(block: bytes) -> Header:
    """Return the fields of a header of `BLOCK` bytes.

    Raises:
        ValueError: it is no header, or its checksum is not that of its bytes.
    """
    noted = _parse_number(block[148:156], "checksum")
    # The low half of Adler-32 is one more than the sum of the bytes, modulo 65,521, which 256 bytes stay below. Adding
    # up the bytes in Python would take most of the time of a listing.
    total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    unsigned = total - sum(block[148:156]) + 8 * 32
    if noted != unsigned and noted != unsigned - 256 * _count_high(block):
        raise ValueError(f"the checksum is {noted}, but that of the bytes is {unsigned}")
    raw = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        raw = block[345:500].partition(b"\0")[0] + b"/" + raw
    return Header(decode_name(raw), _parse_number(block[124:136], "size"), block[156:157])


def parse_pax(content: bytes) -> dict[str, str]:
    """Return the records of a PAX header, by key; ValueError if they are malformed."""
    found, place = {}, 0
    while place < len(content) and content[place]:
        match = _RECORD.match(content, place)
        length = int(match[1]) if match else 0
        end = place + length
        if match is None or end > len(content) or end <= match.end() or content[end - 1 : end] != b"\n":
            raise ValueError(f"{content[place : place + 40]!r} is no record")
        found[decode_name(match[2])] = decode_name(content[match.end() : end - 1])
        place = end
    return found


def decode_name(raw: bytes) -> str:
    """Return a name as text; bytes that are not UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def explain_first_bytes(block: bytes) -> str:
    """Return what the first bytes of a file say, if it is no tar archive."""
    for start, kind in _COMPRESSED.items():
        if block.startswith(start):
            return f"the file is compressed ({kind}), so its members cannot be found by seeking; unpack it to a .tar"
    return "the file is no tar archive"


def _count_high(block: bytes) -> int:
    """Return how many bytes count as negative in the checksums of some old writers."""
    return sum(byte > 127 for byte in block[:148] + block[156:])


def _parse_number(field: bytes, what: str) -> int:
    """Return a number in octal digits, or in GNU's base 256."""
    if field[0] in {0x80, 0xFF}:
        number = int.from_bytes(field[1:], "big")
        if field[0] == 0xFF or number >= 1 << 62:
            raise ValueError(f"the {what} is negative or too large")
        return number
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ValueError(f"the {what} is {shorten(repr(field))}, which is not a number")
    return int(match[1] or b"0", 8)
