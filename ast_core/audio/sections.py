"""Divide a file into sections that libsndfile reads to their ends, and refuse a file that breaks its header's promise.

An ordinary file is one section, and libsndfile reads it as it is. Otherwise the header does not know the length, or
several recordings are joined. Then a section is a view of the file with a corrected header.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ast_core.audio.byte_view import ByteView
from ast_core.audio.chunk_headers import SampleChunk, find_samples
from ast_core.audio.file_window import FileWindow
from ast_core.audio.mpeg_frames import find_mpeg_sections, is_free_format, skip_tags
from ast_core.audio.ogg_pages import find_ogg_links, mark_end
from ast_core.audio.truncation import is_unknown, truncated
from ast_core.errors import ClipError

_STREAMINFO_BYTES = 42
_ID3V1_BYTES = 128
_FLAC_STARTS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
"""The magic and the header of STREAMINFO, which comes first and has 34 bytes (RFC 9639)."""
_CLAIM = 64
"""How many times larger a stream of MPEG frames is said to be: frames of one rate differ in size by less."""
_SCAN_BYTES = 1 << 20
_LARGEST_RIFF = 0xFFFF_0000
"""More bytes of samples than this, with a header of any usual size, do not fit into the 32 bits of WAV's lengths."""
_LARGEST_VOC = 0xFF_FFFF
"""The most bytes that the 24 bits of a VOC block's length can say."""
_MPEG_CODECS = {0x50, 0x55}
"""WAV's numbers of MPEG layers 1 and 2, and of MP3 (RFC 2361)."""
_OTHER_CONTAINERS = (b"RIFF", b"FLV\1", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"\0\0\1\xba", b".RMF")
"""First bytes of files that may contain MPEG frames, but are no stream of them: AVI, FLV, Matroska, ASF, MPEG, RM."""
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""The first box's name in files of MP4's family, for which the same holds."""


@dataclass(frozen=True)
class Section:
    """What libsndfile decodes at a time."""

    view: ByteView | None = None
    """The bytes; None is the file as it is."""
    length_known: bool = True
    """Whether libsndfile's number of frames must be kept. Otherwise the section ends where decoding ends."""


def find_sections(descriptor: int, seconds: float | None) -> list[Section]:
    """Return the sections of an open file, at least one. A file that is not recognised is one section as it is.

    Args:
        descriptor: the file.
        seconds: how much will be decoded; None is the complete file.

    Raises:
        ClipError: stage `decode`, if the file is provably shorter than its header says.
    """
    file = FileWindow(descriptor, 0, os.fstat(descriptor).st_size)
    start = min(file.size, skip_tags(file, 0))
    untagged = FileWindow(descriptor, start, file.size - start) if start else file
    if chunk := find_samples(untagged):
        return list(_chunk_sections(untagged, chunk, seconds)) or [Section()]
    magic = file.read(start, 8)
    if magic.startswith(b"OggS"):
        sections = list(_ogg_sections(file))
    elif magic.startswith(b"fLaC"):
        sections = list(_flac_sections(file, start, seconds))
    elif magic[:4] in _OTHER_CONTAINERS or magic[4:] in _MP4_BOXES:
        sections = []
    else:
        sections = _mpeg_sections(file, range(file.size), seconds)
    return sections or [Section()]


def _ogg_sections(file: FileWindow) -> Iterator[Section]:
    """Yield the links of a chain, each with an end: libsndfile refuses some Opus files without one."""
    links = find_ogg_links(file)
    for link in links:
        if link.ended:
            alone = len(links) == 1 and not link.pages.start
            yield Section(None if alone else ByteView(file.descriptor, [link.pages]))
        else:
            last = link.last_page
            header = mark_end(file, last)
            pieces: list[bytes | range] = [
                range(link.pages.start, last.start),
                header,
                range(last.start + len(header), last.stop),
            ]
            yield Section(ByteView(file.descriptor, pieces))


def _mpeg_sections(file: FileWindow, part: range, seconds: float | None) -> list[Section]:
    """Return the MPEG streams in a part of a file; none if libsndfile finds the stream and its length itself."""
    start = skip_tags(file, part.start)
    found = find_mpeg_sections(file, part, seconds)
    if not found and is_free_format(file.read(start, 4)):  # mpg123 knows the frames, but guesses their number
        return [Section(ByteView(file.descriptor, [range(start, part.stop)], _CLAIM * len(part)), False)]
    if len(found) == 1 and found[0].has_true_tag() and found[0].start == skip_tags(file, 0):
        return []
    return [
        Section(ByteView(file.descriptor, section.corrected(), 0 if section.has_number else _CLAIM * len(part)), False)
        for section in found
    ]


def _flac_sections(file: FileWindow, start: int, seconds: float | None) -> Iterator[Section]:
    """Yield the recordings of a FLAC file, of which several may be joined."""
    begin: int | None = start
    while begin is not None:
        info = file.read(begin, _STREAMINFO_BYTES)
        if len(info) < _STREAMINFO_BYTES:
            return
        frames, rate_hz = int.from_bytes(info[21:26], "big") & 0xF_FFFF_FFFF, int.from_bytes(info[18:21], "big") >> 4
        known = not is_unknown(frames, file.size - begin)
        if seconds is not None and known:
            seconds -= frames / max(1, rate_hz)
        following = None if seconds is not None and seconds < 0 else _find_flac(file, _skip_metadata(file, begin))
        alone = begin == start and following is None
        end = file.size if following is None else following
        tag = end - _ID3V1_BYTES
        if not known and following is None and tag > begin and file.read(tag, 3) == b"TAG":
            end, alone = tag, False  # libFLAC would take the tag for damage
        yield Section(None if alone else ByteView(file.descriptor, [range(begin, end)]), known)
        begin = following


def _skip_metadata(file: FileWindow, begin: int) -> int:
    """Return where the frames of a FLAC recording begin: a picture or an application's block may contain a magic."""
    place, last = begin + 4, False
    while not last and len(header := file.read(place, 4)) == 4:
        last, place = header[0] >= 0x80, place + 4 + int.from_bytes(header[1:], "big")
    return place


def _find_flac(file: FileWindow, place: int) -> int | None:
    """Return where the next FLAC recording begins; None at the end of the file.

    numpy finds the magic ten times as fast as `bytes.find`, which would take a fifth of the time of decoding.
    """
    while len(content := file.read(place, _SCAN_BYTES)) >= len(_FLAC_STARTS[0]):
        bytes_N = np.frombuffer(content, np.uint8)
        for at in np.flatnonzero((bytes_N[:-1] == ord("f")) & (bytes_N[1:] == ord("L"))):
            if content[at : at + len(_FLAC_STARTS[0])] in _FLAC_STARTS:
                return place + int(at)
        place += len(content) - len(_FLAC_STARTS[0]) + 1
    return None


def _chunk_sections(file: FileWindow, chunk: SampleChunk, seconds: float | None) -> Iterator[Section]:
    """Yield the recordings of a file with a length in the header. Several WAV or AIFF files may be joined."""
    while True:
        available = file.size - chunk.start
        unknown = available > 0 and not chunk.chunks_follow and is_unknown(chunk.length, available)
        samples = file.start + chunk.start
        if chunk.length > available and not unknown:
            raise truncated(samples + available, samples + chunk.length, "bytes")
        if chunk.more is not None:
            yield Section(_join_blocks(file, chunk, chunk.more))
            return
        following = None if unknown else _find_joined(file, chunk)
        end = file.start + file.size if following is None else following[0].start
        if chunk.codec in _MPEG_CODECS:
            whole = FileWindow(file.descriptor, 0, samples + available)
            length = available if unknown else chunk.length
            yield from _mpeg_sections(whole, range(samples, samples + length), seconds)
        elif unknown:
            yield Section(_correct(file, chunk))
        else:
            yield Section(ByteView(file.descriptor, [range(file.start, end)]) if following or file.start else None)
        if following is None:
            return
        file, chunk = following


def _join_blocks(file: FileWindow, chunk: SampleChunk, more: tuple[range, ...]) -> ByteView:
    """Return a VOC file with all samples in the first block. libsndfile takes what is behind it for samples."""
    parts = [range(chunk.start, chunk.start + chunk.length), *more]
    end, length = parts[-1].stop, sum(len(part) for part in parts)
    if end > file.size:
        raise truncated(file.start + file.size, file.start + end, "bytes")
    if length > _LARGEST_VOC:
        raise ClipError("decode", f"{length} bytes of samples in several blocks of VOC are not read; convert it to WAV")
    pieces = [range(file.start + part.start, file.start + part.stop) for part in parts]
    head = range(file.start, file.start + chunk.start - 3)
    return ByteView(file.descriptor, [head, length.to_bytes(3, "little"), *pieces, b"\0"])


def _find_joined(file: FileWindow, chunk: SampleChunk) -> tuple[FileWindow, SampleChunk] | None:
    """Return the recording behind another one, and its samples; None if it is the last."""
    samples_end = chunk.start + chunk.length
    for end in {chunk.file_end, samples_end + chunk.length % 2} if chunk.file_end else set():
        if samples_end <= end < file.size:
            begin = min(file.size, skip_tags(file, end))
            joined = FileWindow(file.descriptor, file.start + begin, file.size - begin)
            if found := find_samples(joined):
                return joined, found
    return None


def _correct(file: FileWindow, chunk: SampleChunk) -> ByteView:
    """Return a file with the length that was found in its header."""
    length, end = file.size - chunk.start, file.start + file.size
    if length > _LARGEST_RIFF and file.read(0, 4) == b"RIFF":
        return _convert_to_rf64(file, chunk)
    pieces: list[bytes | range] = []
    place = file.start
    for field in chunk.fields:
        try:
            content = struct.pack(field.form, length + field.extra)
        except struct.error:
            raise ClipError("decode", f"{length} bytes of samples are more than this format's header can say") from None
        pieces += [range(place, file.start + field.place), content]
        place = file.start + field.place + len(content)
    return ByteView(file.descriptor, [*pieces, range(place, end)])


def _convert_to_rf64(file: FileWindow, chunk: SampleChunk) -> ByteView:
    """Return a WAV file with the header of RF64 (EBU Tech 3306), whose lengths have 64 bits."""
    length, samples = file.size - chunk.start, file.start + chunk.start
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, file.size + 28, length, 0, 0)
    unknown = b"\xff" * 4
    head = b"RF64" + unknown + b"WAVE" + sizes
    pieces: list[bytes | range] = [head, range(file.start + 12, samples - 4), unknown, range(samples, samples + length)]
    return ByteView(file.descriptor, pieces)
