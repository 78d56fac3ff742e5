"""MPEG streams without a length, damaged, cut and joined: the frames in the file decide."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from audio_files import ID3V1, ID3V2, RATE_HZ, decode, encode, load, patch, refusal, tone, write

VARIABLE = {"global_quality": "236", "flags": "+qscale"}
RATES_HZ = [8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]
QUIET_THEN_LOUD = np.concatenate([tone(40_000) * 1e-4, tone(40_000) * 2]).astype(np.float32)


def stream(wave: np.ndarray, rate_hz: int = RATE_HZ, layout: str = "mono", **settings: int) -> bytes:
    """Return MP3 of variable bit rate without a Xing header, as recorders write it."""
    options = {"write_xing": "0", "id3v2_version": "0"}
    codec_options = {} if settings else VARIABLE
    return encode(
        "mp3", "libmp3lame", wave, rate_hz, layout=layout, options=options, codec_options=codec_options, **settings
    )


def file(seed: int, samples: int = 20_000) -> bytes:
    """Return an MP3 file with a Xing header."""
    return write("MP3", tone(samples, seed))


def xing(content: bytes) -> int:
    """Return the place of the number of frames in the Xing header; the number of bytes is behind it."""
    return max(content.find(b"Xing"), content.find(b"Info")) + 8


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_a_stream_without_xing_header_is_read_to_its_end(tmp_path: Path, rate_hz: int, layout: str) -> None:
    content = stream(QUIET_THEN_LOUD, rate_hz, layout)
    np.testing.assert_allclose(load(tmp_path, content, rate_hz), decode(content), atol=1e-4)


@pytest.mark.parametrize(
    ("codec", "rate_hz", "layout", "bit_rate"),
    [
        ("libmp3lame", 44_100, "mono", 128_000),
        ("mp2", 44_100, "mono", 192_000),
        ("mp2", 48_000, "stereo", 128_000),
        ("mp2", 24_000, "stereo", 64_000),
    ],
)
def test_streams_of_constant_bit_rate_are_read_to_their_ends(
    tmp_path: Path, codec: str, rate_hz: int, layout: str, bit_rate: int
) -> None:
    wave_N = tone(50_000, rate_hz=rate_hz)
    if codec == "mp2":
        content = encode("mp2", "mp2", wave_N, rate_hz, layout=layout, bit_rate=bit_rate)
    else:
        content = stream(wave_N, rate_hz, layout, bit_rate=bit_rate)
    np.testing.assert_allclose(load(tmp_path, content, rate_hz), decode(content), atol=1e-4)
    assert len(load(tmp_path, content + ID3V2 + content, rate_hz)) == 2 * len(decode(content))


@pytest.mark.parametrize("before", [b"", ID3V2, bytes(700)], ids=["nothing", "ID3", "zeros"])
@pytest.mark.parametrize("behind", [b"", ID3V1, bytes(5000), b"APETAGEX" + bytes(24)], ids=["end", "ID3", "0", "APE"])
def test_tags_and_padding_around_a_stream_are_no_audio(tmp_path: Path, before: bytes, behind: bytes) -> None:
    content = stream(tone(30_000))
    np.testing.assert_array_equal(load(tmp_path, before + content + behind), load(tmp_path, content))


def test_a_stream_from_its_middle_is_read_from_its_first_complete_frame(tmp_path: Path) -> None:
    content = stream(tone(60_000))
    whole_N, part_N = load(tmp_path, content), load(tmp_path, content[1234:])
    assert 40_000 < len(part_N) < len(whole_N)
    np.testing.assert_allclose(part_N[3000:], whole_N[3000 - len(part_N) :], atol=1e-5)
    cut_N = load(tmp_path, content[:-1])  # without the last frame
    np.testing.assert_array_equal(cut_N, whole_N[:-576])


def test_the_beginning_of_a_stream_is_the_beginning(tmp_path: Path) -> None:
    content = stream(QUIET_THEN_LOUD)
    np.testing.assert_array_equal(load(tmp_path, content, max_seconds=1.5), load(tmp_path, content)[:24_000])


@pytest.mark.parametrize("between", [b"", ID3V1, ID3V2, ID3V1 + ID3V2], ids=["nothing", "ID3v1", "ID3v2", "both"])
def test_joined_files_are_read_to_the_end(tmp_path: Path, between: bytes) -> None:
    first, second, third = file(1), file(2, 30_000), stream(tone(10_000, 3))
    expected_N = np.concatenate([load(tmp_path, part) for part in (first, second, third)])
    assert len(expected_N) > 59_999
    # A stream without a Xing header has nothing that says where it begins: it continues the recording before it.
    joined_N = load(tmp_path, first + between + second + between + third)
    assert abs(len(joined_N) - len(expected_N)) < 1200
    np.testing.assert_array_equal(joined_N[:50_000], expected_N[:50_000])


def test_joined_streams_without_headers_equal_ffmpegs(tmp_path: Path) -> None:
    content = stream(tone(30_000, 1)) + stream(tone(20_000, 2))
    np.testing.assert_allclose(load(tmp_path, content), decode(content), atol=1e-4)


def test_joined_files_of_other_rates_and_channels_are_read_to_the_end(tmp_path: Path) -> None:
    first, second = stream(tone(96_000, rate_hz=48_000), 48_000, "stereo"), file(2)
    joined_N, second_N = load(tmp_path, first + second), load(tmp_path, second)
    np.testing.assert_array_equal(joined_N[-len(second_N) :], second_N)
    assert len(joined_N) - len(second_N) == len(load(tmp_path, first))


@pytest.mark.parametrize("frames", [0, 5, 0xFFFF_FFFF])
def test_a_xing_header_with_a_wrong_number_of_frames_is_corrected(tmp_path: Path, frames: int) -> None:
    content = file(1)
    wrong = patch(content, (xing(content), ">I", frames))
    np.testing.assert_array_equal(load(tmp_path, wrong), load(tmp_path, content))


def test_a_file_that_is_shorter_than_its_promise_is_refused_with_both_numbers(tmp_path: Path) -> None:
    content = file(1)
    more_bytes = patch(content, (xing(content) + 4, ">I", 100_000))
    assert refusal(tmp_path, more_bytes) == f"truncated: {len(content)} of 100000 bytes"
    more_frames = patch(content, (xing(content), ">I", 10_000))
    assert re.fullmatch(r"truncated: \d+ of 10000 frames", refusal(tmp_path, more_frames))
    assert refusal(tmp_path, content[:-1]) == f"truncated: {len(content) - 1} of {len(content)} bytes"


@pytest.mark.parametrize("cut", [1, 100, 500])
def test_a_cut_file_that_is_joined_with_another_is_refused(tmp_path: Path, cut: int) -> None:
    assert refusal(tmp_path, file(1)[:-cut] + file(2)).startswith("truncated: ")
    assert refusal(tmp_path, file(1) + file(2)[:-cut]).startswith("truncated: ")


def test_mp3_in_wav_is_read_to_the_end(tmp_path: Path) -> None:
    content = encode("wav", "libmp3lame", QUIET_THEN_LOUD, codec_options=VARIABLE)
    np.testing.assert_allclose(load(tmp_path, content), decode(content), atol=1e-4)
    assert refusal(tmp_path, content[:-2000]).startswith("truncated: ")
