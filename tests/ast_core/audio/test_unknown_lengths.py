"""Headers that do not know the length: read to the end. Any other length is a promise: a shorter file is refused."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from audio_files import ID3V2, RATE_HZ, decode, encode, load, patch, refusal, tone, write

from ast_core.audio.sections import find_sections

WAVE_N = tone(12_000)
UNKNOWN_32 = [0, 0x7F00_0000, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]
"""Lengths that programs write: FFmpeg, sox (AIFF), sox and espeak-ng, arecord, GStreamer."""
UNKNOWN_64 = [*UNKNOWN_32, 2**63 - 1, 2**64 - 1]
FORMS = {
    "WAV": (b"data", 4, "<I", 4, "<I", UNKNOWN_32),
    "AIFF": (b"SSND", 4, ">I", 4, ">I", UNKNOWN_32),
    "AU": (b".snd", 8, ">I", 8, ">I", UNKNOWN_32),
    "W64": (b"data\xf3", 16, "<Q", 16, "<Q", UNKNOWN_64),
    "CAF": (b"data", 4, ">Q", None, "", UNKNOWN_64),
    "RF64": (b"ds64", 16, "<Q", 20, "<Q", UNKNOWN_64),
}
"""Where the lengths of the samples and of the file are: after which name, how far behind it, how they are written."""


def with_length(form: str, length: int, subtype: str | None = None, file_length: int | None = None) -> bytes:
    """Return a file whose header says a length of the samples, and the same or another one of the file."""
    content = write(form, WAVE_N, subtype=subtype)
    name, behind, kind, file_place, file_kind, _ = FORMS[form]
    fields = [(content.index(name) + behind, kind, length)]
    if file_place is not None and file_place != fields[0][0]:
        fields.append((file_place, file_kind, length if file_length is None else file_length))
    return patch(content, *fields)


@pytest.mark.parametrize(("form", "length"), [(form, length) for form in FORMS for length in FORMS[form][-1]])
def test_an_unknown_length_is_read_to_the_end(tmp_path: Path, form: str, length: int) -> None:
    expected_N = load(tmp_path, write(form, WAVE_N))
    assert len(expected_N) == len(WAVE_N)
    np.testing.assert_array_equal(load(tmp_path, with_length(form, length)), expected_N)
    # The beginning is the beginning, too.
    np.testing.assert_array_equal(load(tmp_path, with_length(form, length), max_seconds=0.5), expected_N[:8000])


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24", "PCM_U8", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"])
@pytest.mark.parametrize("length", [0, 0x7FFF_F000, 0xFFFF_FFFF])
def test_an_unknown_length_is_read_to_the_end_in_every_coding(tmp_path: Path, subtype: str, length: int) -> None:
    expected_N = load(tmp_path, write("WAV", WAVE_N, subtype=subtype))
    np.testing.assert_array_equal(load(tmp_path, with_length("WAV", length, subtype)), expected_N)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 1000])
def test_a_file_that_is_shorter_than_a_promise_is_refused_with_both_numbers(
    tmp_path: Path, form: str, length: int
) -> None:
    content = write(form, WAVE_N)
    found, promised = re.findall(r"truncated: (\d+) of (\d+) bytes", refusal(tmp_path, content[:-length]))[0]
    assert int(promised) - int(found) == length
    assert int(found) == len(content) - length


@pytest.mark.parametrize("form", ["NIST", "VOC", "AVR", "SVX", "MPC2K", "WVE", "MAT4"])
def test_formats_of_old_programs_keep_their_promises(tmp_path: Path, form: str) -> None:
    content = write(form, WAVE_N, 8000 if form == "WVE" else RATE_HZ)
    assert len(load(tmp_path, content, 8000 if form == "WVE" else RATE_HZ)) == len(WAVE_N)
    assert re.match(r"truncated: \d+ of \d+ bytes", refusal(tmp_path, content[:-2]))


def test_a_recorder_that_stopped_within_a_sample_keeps_the_others(tmp_path: Path) -> None:
    assert len(load(tmp_path, with_length("WAV", 0)[:-1])) == len(WAVE_N) - 1


def test_an_empty_file_whose_header_is_complete_stays_empty(tmp_path: Path) -> None:
    empty = write("WAV", WAVE_N[:0])
    assert refusal(tmp_path, empty) == "the file has no samples"
    tags = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf58.29.100\0"
    assert refusal(tmp_path, empty + tags) == "the file has no samples"
    assert len(load(tmp_path, with_length("WAV", 0))) == len(WAVE_N)


def test_chunks_behind_the_samples_are_no_samples(tmp_path: Path) -> None:
    assert len(load(tmp_path, write("WAV", WAVE_N) + b"LIST\4\0\0\0INFO")) == len(WAVE_N)


@pytest.mark.parametrize(
    ("length", "frames"), [(0xFFFF_FFFF, 2_200_000_000), (0, 2_200_000_000), (0x7FFF_F000, 1_200_000_000)]
)
def test_a_stream_of_gigabytes_is_read_beyond_its_writers_unknown_length(
    tmp_path: Path, length: int, frames: int
) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(with_length("WAV", length)[:44])
    os.truncate(path, 44 + 2 * frames)  # a sparse file
    with path.open("rb") as file:
        (section,) = find_sections(file.fileno(), None)
        with soundfile.SoundFile(section.view) as sound:
            assert sound.frames == frames


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("wav", "pcm_f32le"),
        ("wav", "adpcm_ima_wav"),
        ("wav", "libmp3lame"),
        ("au", "pcm_s16be"),
        ("caf", "pcm_s16be"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("mp3", "libmp3lame"),
        ("mp2", "mp2"),
    ],
)
def test_what_ffmpeg_writes_into_a_pipe_is_what_ffmpeg_reads(tmp_path: Path, form: str, codec: str) -> None:
    rate_hz = 48_000 if codec == "libopus" else RATE_HZ
    content = encode(form, codec, tone(2 * rate_hz, rate_hz=rate_hz), rate_hz, pipe=True)
    expected_N = decode(content)
    np.testing.assert_allclose(load(tmp_path, content, rate_hz), expected_N, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [("aiff", "pcm_s16be", {}), ("w64", "pcm_s16le", {}), ("wav", "pcm_s16le", {"rf64": "always"})],
)
def test_pipes_that_ffmpeg_cannot_read_itself_are_read(
    tmp_path: Path, form: str, codec: str, options: dict[str, str]
) -> None:
    content = encode(form, codec, WAVE_N, pipe=True, options=options)
    np.testing.assert_allclose(load(tmp_path, content), WAVE_N, atol=1e-4)


def without_total(flac: bytes, total: int = 0) -> bytes:
    """Return a FLAC file whose STREAMINFO says another number of samples."""
    return patch(flac, (21, ">B", flac[21] & 0xF0 | total >> 32), (22, ">I", total & 0xFFFF_FFFF))


@pytest.mark.parametrize("total", [0, 2**36 - 1, 0x7F00_0000])
@pytest.mark.parametrize("before", [b"", ID3V2])
def test_flac_of_unknown_length_is_read_to_the_end(tmp_path: Path, total: int, before: bytes) -> None:
    content = before + without_total(write("FLAC", WAVE_N), total)
    np.testing.assert_array_equal(load(tmp_path, content), load(tmp_path, write("FLAC", WAVE_N)))
    assert len(load(tmp_path, content, max_seconds=0.25)) == 4000


def test_flac_that_is_shorter_than_its_promise_is_refused_with_both_numbers(tmp_path: Path) -> None:
    content = write("FLAC", WAVE_N)
    assert re.match(r"8192 of 12000 frames can be read: ", refusal(tmp_path, content[: len(content) * 3 // 4]))
    assert re.match(r"truncated: 12000 of 13000 frames", refusal(tmp_path, without_total(content, 13_000)))


@pytest.mark.parametrize("total", [0, 12_000])
def test_damage_within_flac_is_noticed(tmp_path: Path, total: int) -> None:
    content = bytearray(without_total(write("FLAC", WAVE_N), total))
    content[len(content) // 2 : len(content) // 2 + 20] = bytes(20)
    assert "flac decoder" in refusal(tmp_path, bytes(content))


def clear_end_flag(ogg: bytes) -> bytes:
    """Return an Ogg file whose last page does not say that it is the last, with its checksum."""
    content, place = bytearray(ogg), ogg.rindex(b"OggS")
    content[place + 5] &= ~4
    content[place + 22 : place + 26] = bytes(4)
    checksum = 0
    for byte in content[place:]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = checksum << 1 & 0xFFFF_FFFF ^ (0x04C1_1DB7 if checksum >> 31 else 0)
    struct.pack_into("<I", content, place + 22, checksum)
    return bytes(content)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_without_an_end_flag_is_read_to_the_end(tmp_path: Path, subtype: str) -> None:
    content = write("OGG", tone(40_000), subtype=subtype)
    expected_N = load(tmp_path, content)
    assert len(expected_N) == 40_000
    np.testing.assert_array_equal(load(tmp_path, clear_end_flag(content)), expected_N)
    without_last_page = content[: content.rindex(b"OggS")]  # a stream that stopped between pages breaks no promise
    np.testing.assert_array_equal(
        load(tmp_path, without_last_page), expected_N[: len(load(tmp_path, without_last_page))]
    )
    assert len(load(tmp_path, without_last_page)) > 20_000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("kept", [3, 20, 30, 100, -1])
def test_ogg_that_ends_within_a_page_is_refused_with_both_numbers(tmp_path: Path, subtype: str, kept: int) -> None:
    content = write("OGG", tone(40_000), subtype=subtype)
    cut = content[:-1] if kept < 0 else content[: content.rindex(b"OggS") + kept]
    found, promised = re.findall(r"truncated: (\d+) of (\d+) bytes", refusal(tmp_path, cut))[0]
    assert int(found) == len(cut) < int(promised) <= len(content)
