"""Find the samples in files with a length in the header: WAV, RF64, Wave64, AIFF, 8SVX, CAF, AU, ...

Most of these files consist of chunks: a name, a length, content, and a byte of padding behind an odd length. One chunk
says the format (`fmt `, `COMM`), another contains the samples (`data`, `SSND`). Others have headers of fixed size.
Specifications: RIFF/WAVE (Microsoft and IBM, 1991), RF64 and BW64 (EBU Tech 3306, ITU-R BS.2088), AIFF (Apple, 1989),
CAF (Apple Core Audio Format).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ast_core.audio.file_window import FileWindow
from ast_core.audio.truncation import STREAMED, is_unknown
from ast_core.errors import ClipError

_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_VOC_BLOCKS = range(1, 10)
"""Kinds of VOC's blocks; 0 ends the file."""
_VOC_FORMS = {1: 2, 2: 0, 9: 12}
"""Kinds of VOC's blocks with samples, and the bytes in front of the samples that say rate and coding."""
_MAT4_BYTES = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2, 5: 1}
"""Bytes of a number in a MATLAB 4 matrix, by the tens digit of its kind."""
_NAME = re.compile(rb"[ -~]{4}")
"""A chunk's name. Other bytes, for example zeros, are no chunk, and would be walked for minutes."""


@dataclass(frozen=True)
class SizeField:
    """A field of a header that contains the length of the samples plus a constant."""

    place: int
    form: str
    """The field's format for `struct`."""
    extra: int = 0


@dataclass(frozen=True)
class SampleChunk:
    """The part of a file that contains the samples, by its header."""

    start: int
    length: int
    """Bytes, as the header says."""
    fields: tuple[SizeField, ...] = ()
    """What to correct if the length is unknown. Empty if the decoder itself reads to the end then."""
    file_end: int = 0
    """The end of the file, as the header says; 0 if the header does not say it."""
    chunks_follow: bool = False
    """Whether there is another chunk behind this one, so that a length of 0 is true."""
    codec: int = 0
    """WAV's number of the coding; 0 if the format is not of WAV's family."""
    more: tuple[range, ...] | None = None
    """Places of further samples; None if the decoder itself finds the end of the samples."""


def find_samples(file: FileWindow) -> SampleChunk | None:
    """Return where the samples are by a file's header; None if the file is of another kind or has no samples."""
    head = file.read(0, 12)
    for magic, kind, parse in _PARSERS:
        if head.startswith(magic) and head[8:].startswith(kind):
            try:
                return parse(file)
            except struct.error:  # the header itself is cut
                return None
    return None


def _chunks(file: FileWindow, place: int, form: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of each chunk: a name of four letters, a length, padding to even places."""
    header = struct.Struct(form)
    while place + header.size <= file.size:
        name, length = header.unpack(file.read(place, header.size))
        if not _NAME.fullmatch(name):
            return
        yield name, place + header.size, length
        place += header.size + length + (length % 2 if form != ">4sQ" else 0)


def _chunks_follow(file: FileWindow, place: int, form: str) -> bool:
    """Return whether the rest of the file consists of complete chunks."""
    end = place
    for _, start, length in _chunks(file, place, form):
        end = start + length + length % 2
    return place < end and end - 1 <= file.size <= end


def _true_length(file: FileWindow, start: int, length: int, form: str = "") -> int:
    """Return the length of a chunk; 0 if it is unknown.

    A stream may be longer than the length that its writer puts for an unknown one. Then no chunks follow.
    """
    available = file.size - start
    longer = (
        bool(form) and STREAMED <= length < available and not _chunks_follow(file, start + length + length % 2, form)
    )
    return 0 if longer or is_unknown(length, available) else length


def _parse_wav(file: FileWindow) -> SampleChunk | None:
    order = "<" if file.read(0, 4) == b"RIFF" else ">"
    (riff,) = struct.unpack(f"{order}I", file.read(4, 4))
    codec = 0
    for name, start, length in _chunks(file, 12, f"{order}4sI"):
        if name == b"fmt ":
            codec = int.from_bytes(file.read(start, 2), "little" if order == "<" else "big")
        if name == b"data":
            fields = SizeField(4, f"{order}I", start - 8), SizeField(start - 4, f"{order}I")
            length = _true_length(file, start, length, f"{order}4sI")  # noqa: PLW2901
            follow = length == 0 and _chunks_follow(file, start, f"{order}4sI")
            return SampleChunk(start, length, fields, 8 + riff, follow, codec)
    return None


def _parse_rf64(file: FileWindow) -> SampleChunk | None:
    sizes = 0
    for name, start, length in _chunks(file, 12, "<4sI"):
        if name == b"ds64":
            sizes = start
        if name == b"data":
            if length == 0xFFFF_FFFF and sizes:
                (length,) = struct.unpack("<Q", file.read(sizes + 8, 8))  # noqa: PLW2901 the true one
            fields = (SizeField(sizes, "<Q", start - 8), SizeField(sizes + 8, "<Q")) if sizes else ()
            return SampleChunk(start, length, fields)
    return None


def _parse_w64(file: FileWindow) -> SampleChunk | None:
    place, codec = 40, 0
    while place + 24 <= file.size:
        guid, length = struct.unpack("<16sQ", file.read(place, 24))
        if length < 24 and guid != _W64_DATA:
            return None
        if guid.startswith(b"fmt "):
            codec = int.from_bytes(file.read(place + 24, 2), "little")
        if guid == _W64_DATA:
            fields = SizeField(16, "<Q", place + 24), SizeField(place + 16, "<Q", 24)
            return SampleChunk(place + 24, max(0, _true_length(file, place, length) - 24), fields, codec=codec)
        place += (length + 7) // 8 * 8
    return None


def _parse_aiff(file: FileWindow) -> SampleChunk | None:
    (form,) = struct.unpack(">I", file.read(4, 4))
    for name, start, length in _chunks(file, 12, ">4sI"):
        if name in {b"SSND", b"BODY"}:
            skipped = 8 if name == b"SSND" else 0  # SSND begins with two numbers that are no samples
            length = _true_length(file, start, length, ">4sI")  # noqa: PLW2901
            fields = SizeField(4, ">I", start - 8 + skipped), SizeField(start - 4, ">I", skipped)
            follow = length <= skipped and _chunks_follow(file, start + length, ">4sI")
            return SampleChunk(start + skipped, max(0, length - skipped), fields, 8 + form, follow)
    return None


def _parse_caf(file: FileWindow) -> SampleChunk | None:
    for name, start, length in _chunks(file, 8, ">4sQ"):
        if name == b"data":  # its first four bytes count edits
            return SampleChunk(
                start + 4, max(0, _true_length(file, start, length) - 4), (SizeField(start - 8, ">Q", 4),)
            )
    return None


def _parse_au(file: FileWindow) -> SampleChunk | None:
    order = ">" if file.read(0, 4) == b".snd" else "<"
    start, length = struct.unpack(f"{order}II", file.read(4, 8))
    return SampleChunk(start, length, (SizeField(8, f"{order}I"),))


def _parse_sphere(file: FileWindow) -> SampleChunk | None:
    text = file.read(0, 1024)
    start = re.match(rb"NIST_1A\n +(\d+)\n", text)
    names = (rb"sample_count", rb"sample_n_bytes", rb"channel_count")
    found = [re.search(rb"\n" + name + rb" -i (\d+)", text) for name in names]
    if not start or b"shorten" in text or not found[0] or not found[1]:
        return None
    count, width, channels = (int(value[1]) if value else 1 for value in found)
    return SampleChunk(int(start[1]), count * width * channels)


def _parse_voc(file: FileWindow) -> SampleChunk | None:
    """Return the samples of all blocks. A block is a byte for its kind and 24 bits for its length."""
    (place,) = struct.unpack("<H", file.read(20, 2))
    first, form, more = range(0), b"", []
    while place + 4 <= file.size:
        kind, *length = file.read(place, 4)
        block = range(place + 4, place + 4 + int.from_bytes(bytes(length), "little"))
        if kind not in _VOC_BLOCKS:
            break
        place = block.stop
        if kind not in _VOC_FORMS:
            continue
        block_form = file.read(place - len(block), min(len(block), _VOC_FORMS[kind]))
        if not first:
            first, form = block, block_form
            if not first:  # the length is unknown
                return SampleChunk(first.start, 0)
        elif block_form not in {b"", form}:
            raise ClipError("decode", f"the block of VOC samples at byte {block.start} has another rate or coding")
        else:
            more.append(range(block.start + len(block_form), block.stop))
    if not first:
        return None
    ends_file = file.size <= first.stop + 1  # a byte 0 behind the last block is the end
    return SampleChunk(first.start, len(first), more=None if ends_file else tuple(more))


def _parse_avr(file: FileWindow) -> SampleChunk | None:
    stereo, bits = struct.unpack(">HH", file.read(12, 4))
    (frames,) = struct.unpack(">I", file.read(26, 4))
    return SampleChunk(128, frames * (1 + bool(stereo)) * (bits // 8))


def _parse_mpc2k(file: FileWindow) -> SampleChunk | None:
    stereo, _, _, frames = struct.unpack("<BIII", file.read(21, 13))
    return SampleChunk(42, 2 * frames * (1 + bool(stereo)))


def _parse_wve(file: FileWindow) -> SampleChunk | None:
    return SampleChunk(32, *struct.unpack(">I", file.read(18, 4)))


def _parse_mat4(file: FileWindow) -> SampleChunk | None:
    order = "<" if file.read(4, 4) == b"\1\0\0\0" else ">"  # the first matrix, the sampling rate, has one row
    place = 0
    while place + 20 <= file.size:
        kind, rows, columns, imaginary, name = struct.unpack(f"{order}5I", file.read(place, 20))
        chunk = SampleChunk(place + 20 + name, rows * columns * _MAT4_BYTES.get(kind // 10 % 10, 0) * (1 + imaginary))
        if place:
            return chunk
        place = chunk.start + chunk.length
    return None


_PARSERS: tuple[tuple[bytes, bytes, Callable[[FileWindow], SampleChunk | None]], ...] = (
    (b"RIFF", b"WAVE", _parse_wav),
    (b"RIFX", b"WAVE", _parse_wav),
    (b"RF64", b"WAVE", _parse_rf64),
    (b"BW64", b"WAVE", _parse_rf64),
    (_W64_RIFF[:12], b"", _parse_w64),
    (b"FORM", b"AIF", _parse_aiff),
    (b"FORM", b"8SVX", _parse_aiff),
    (b"FORM", b"16SV", _parse_aiff),
    (b"caff", b"", _parse_caf),
    (b".snd", b"", _parse_au),
    (b"dns.", b"", _parse_au),
    (b"NIST_1A\n", b"", _parse_sphere),
    (b"Creative Voi", b"", _parse_voc),
    (b"2BIT", b"", _parse_avr),
    (b"\1\4", b"", _parse_mpc2k),
    (b"ALawSoundFil", b"", _parse_wve),
    (b"\0\0\0\0\1\0\0\0\1\0\0\0", b"", _parse_mat4),
    (b"\0\0\3\xe8\0\0\0\1\0\0\0\1", b"", _parse_mat4),
)
