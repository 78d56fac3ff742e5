"""Several recordings in one file: read one behind the other, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audio_files import ID3V1, encode, load, refusal, tone, write

FIRST_N, SECOND_N = tone(40_000, 1), tone(30_000, 2)
FORMS = [("WAV", None), ("AIFF", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")]


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_joined_recordings_are_read_one_behind_the_other(tmp_path: Path, form: str, subtype: str | None) -> None:
    parts = [write(form, wave_N, subtype=subtype) for wave_N in (FIRST_N, SECOND_N, FIRST_N)]
    expected_N = np.concatenate([load(tmp_path, part) for part in parts])
    assert len(expected_N) == 110_000
    np.testing.assert_array_equal(load(tmp_path, b"".join(parts)), expected_N)
    np.testing.assert_array_equal(load(tmp_path, b"".join(parts), max_seconds=3.0), expected_N[:48_000])


@pytest.mark.parametrize(("form", "subtype"), FORMS)
@pytest.mark.parametrize("cut", [1, 999])
def test_each_joined_recording_keeps_its_promise(tmp_path: Path, form: str, subtype: str | None, cut: int) -> None:
    first, second = (write(form, wave_N, subtype=subtype) for wave_N in (FIRST_N, SECOND_N))
    assert " of " in refusal(tmp_path, first + second[:-cut])
    if form in {"FLAC", "OGG"}:  # the others say where they end, and what is there is noise behind the end
        assert " of " in refusal(tmp_path, first[:-cut] + second)


def test_a_chain_of_other_codecs_rates_and_channels_is_read_on(tmp_path: Path) -> None:
    stereo = np.stack([FIRST_N, FIRST_N], 1)
    parts = [
        write("OGG", FIRST_N, subtype="VORBIS"),
        write("OGG", SECOND_N, subtype="OPUS"),
        write("OGG", stereo, 48_000, "VORBIS"),
    ]
    joined_N = load(tmp_path, b"".join(parts))
    assert len(joined_N) == sum(len(load(tmp_path, part)) for part in parts)
    np.testing.assert_array_equal(joined_N[:40_000], load(tmp_path, parts[0]))


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_other_bytes_behind_a_recording_are_no_audio(tmp_path: Path, form: str, subtype: str | None) -> None:
    content = write(form, FIRST_N, subtype=subtype)
    noise = np.random.default_rng(0).bytes(3000)
    for behind in (ID3V1, noise):
        np.testing.assert_array_equal(load(tmp_path, content + behind), load(tmp_path, content))


@pytest.mark.parametrize(("form", "codec", "bit_rate"), [("ipod", "aac", None), ("asf", "wmav2", 128_000)])
def test_joined_files_of_which_ffmpeg_reads_one_are_refused_by_name(
    tmp_path: Path, form: str, codec: str, bit_rate: int | None
) -> None:
    content = encode(form, codec, tone(44_100, rate_hz=44_100), 44_100, bit_rate=bit_rate)
    assert refusal(tmp_path, content + content).startswith("several recordings are joined in this file")
