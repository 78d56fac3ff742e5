"""Files that programs and people make, of kinds that decoders disagree on: tags, blocks, pieces, unusual containers."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from audio_files import ID3V1, ID3V2, RATE_HZ, decode, encode, load, patch, refusal, tone, write

from ast_core.audio.decoder import Decoder
from ast_core.errors import ClipError

WAVE_N = tone(12_000)
NOISE = np.random.default_rng(0).bytes(4000)


@pytest.mark.parametrize("form", ["WAV", "AIFF", "OGG"])
def test_a_tag_in_front_of_a_file_changes_no_sample(tmp_path: Path, form: str) -> None:
    content = write(form, WAVE_N)
    np.testing.assert_array_equal(load(tmp_path, ID3V2 + content), load(tmp_path, content))


def test_wav_files_joined_with_tags_between_them_or_of_mp3_are_read_to_the_end(tmp_path: Path) -> None:
    pcm, mp3 = write("WAV", WAVE_N), encode("wav", "libmp3lame", WAVE_N)
    for first, second in ((pcm, ID3V2 + pcm), (pcm + ID3V1, pcm), (mp3, mp3), (mp3, pcm), (pcm, mp3)):
        parts_N = [load(tmp_path, part) for part in (first, second)]
        np.testing.assert_array_equal(load(tmp_path, first + second), np.concatenate(parts_N))


@pytest.mark.parametrize("length", [0, 0x7FFF_F000, 0xFFFF_FFFF])
def test_a_wav_file_behind_a_tag_is_read_to_its_end_or_refused_with_both_numbers(tmp_path: Path, length: int) -> None:
    content = write("WAV", WAVE_N)
    unknown = patch(content, (4, "<I", length), (40, "<I", length))
    np.testing.assert_array_equal(load(tmp_path, ID3V2 + unknown), load(tmp_path, content))
    whole = len(ID3V2 + content)
    assert refusal(tmp_path, (ID3V2 + content)[:-2000]) == f"truncated: {whole - 2000} of {whole} bytes"


def test_links_of_an_ogg_chain_that_only_ffmpeg_reads_are_read_once(tmp_path: Path) -> None:
    flac = encode("ogg", "flac", WAVE_N)
    vorbis = write("OGG", WAVE_N, subtype="VORBIS")
    for parts in ([flac, flac, flac], [vorbis, flac], [flac, vorbis]):
        expected_N = np.concatenate([load(tmp_path, part) for part in parts])
        assert len(expected_N) == len(parts) * len(WAVE_N)
        np.testing.assert_array_equal(load(tmp_path, b"".join(parts)), expected_N)


def voc(*blocks: tuple[int, bytes]) -> bytes:
    """Return a VOC file of blocks."""
    head = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x010A, 0x1129)
    return head + b"".join(bytes([kind]) + len(body).to_bytes(3, "little") + body for kind, body in blocks) + b"\0"


@pytest.mark.parametrize(
    ("kind", "form"), [(1, bytes([256 - 1_000_000 // 8000, 0])), (9, struct.pack("<IBBHI", 8000, 8, 1, 0, 0))]
)
def test_all_blocks_of_voc_are_read_and_nothing_else(tmp_path: Path, kind: int, form: bytes) -> None:
    samples = bytes((128 + 100 * tone(8000, rate_hz=8000)).astype("u1"))
    text = (5, b"a title\0")
    one_N = load(tmp_path, voc((kind, form + samples)), 8000)
    assert len(one_N) == 8000
    np.testing.assert_array_equal(load(tmp_path, voc(text, (kind, form + samples), text), 8000), one_N)
    for second in ((2, samples), (kind, form + samples)):
        content = voc((kind, form + samples), second, text)
        np.testing.assert_array_equal(load(tmp_path, content, 8000), np.tile(one_N, 2))
        assert re.fullmatch(r"truncated: \d+ of \d+ bytes", refusal(tmp_path, content[:-100], 8000))
    other = bytes([form[0] ^ 1]) + form[1:]
    assert "another rate or coding" in refusal(tmp_path, voc((kind, form + samples), (kind, other + samples)), 8000)


def test_mp3_of_a_free_bit_rate_is_read_behind_a_tag(tmp_path: Path) -> None:
    options = {"write_xing": "0", "id3v2_version": "0"}
    wave_N = tone(48_000, rate_hz=48_000)
    content = bytearray(encode("mp3", "libmp3lame", wave_N, 48_000, bit_rate=128_000, options=options))
    expected_N = load(tmp_path, bytes(content), 48_000)
    for place in range(0, len(content), 384):  # each frame's
        content[place + 2] &= 0x0F
    np.testing.assert_allclose(load(tmp_path, bytes(content), 48_000), expected_N, atol=1e-6)
    np.testing.assert_allclose(load(tmp_path, ID3V2 + bytes(content), 48_000), expected_N, atol=1e-6)


def test_mp3_with_a_true_xing_header_is_read_behind_other_bytes(tmp_path: Path) -> None:
    content = write("MP3", WAVE_N)
    np.testing.assert_array_equal(load(tmp_path, NOISE[:3000] + content), load(tmp_path, content))


def test_a_recording_within_a_flac_files_metadata_is_no_joined_one(tmp_path: Path) -> None:
    content = write("FLAC", WAVE_N)
    block = b"\2" + (4 + len(content)).to_bytes(3, "big") + b"test" + content
    assert content[4] == 0  # STREAMINFO is not the last block
    np.testing.assert_array_equal(load(tmp_path, content[:42] + block + content[42:]), load(tmp_path, content))


def test_a_tag_behind_flac_of_unknown_length_is_no_damage(tmp_path: Path) -> None:
    content = write("FLAC", WAVE_N)
    unknown = patch(content, (21, ">B", content[21] & 0xF0), (22, ">I", 0))
    np.testing.assert_array_equal(load(tmp_path, unknown + ID3V1), load(tmp_path, content))
    assert refusal(tmp_path, unknown[:60])


@pytest.mark.parametrize(("form", "bit_rate"), [("mpeg", 64_000), ("dvd", 128_000), ("vob", 32_000)])
def test_mpeg_frames_in_a_program_stream_are_not_read_as_a_stream_of_them(
    tmp_path: Path, form: str, bit_rate: int
) -> None:
    content = encode(form, "mp2", tone(132_300, rate_hz=44_100), 44_100, bit_rate=bit_rate)
    np.testing.assert_allclose(load(tmp_path, content, 44_100), decode(content), atol=1e-6)


@pytest.mark.parametrize(("form", "codec", "bit_rate"), [("matroska", "aac", None), ("asf", "wmav2", 128_000)])
def test_bytes_behind_a_container_are_no_broken_promise(
    tmp_path: Path, form: str, codec: str, bit_rate: int | None
) -> None:
    content = encode(form, codec, tone(44_100, rate_hz=44_100), 44_100, bit_rate=bit_rate)
    for behind in (ID3V1, NOISE, bytes(3000)):
        np.testing.assert_array_equal(load(tmp_path, content + behind, 44_100), load(tmp_path, content, 44_100))


@pytest.mark.parametrize(("form", "codec"), [("adts", "aac"), ("ipod", "aac"), ("avi", "pcm_s16le")])
def test_tags_in_an_old_encoding_do_not_refuse_the_file(tmp_path: Path, form: str, codec: str) -> None:
    content = encode(form, codec, tone(44_100), 44_100)
    content += b"TAG" + b"Lavf".ljust(125, b"\0") if form == "adts" else b""
    assert b"Lavf" in content  # FFmpeg's tag
    korean = content.replace(b"Lavf", "\uc81c\ubaa9".encode("euc-kr"))
    np.testing.assert_array_equal(load(tmp_path, korean, 44_100), load(tmp_path, content, 44_100))


def test_reasons_for_refusals_are_true(tmp_path: Path) -> None:
    no_channels = patch(write("WAV", WAVE_N), (22, "<H", 0))
    assert "no usable channels" in refusal(tmp_path, no_channels)
    assert "no usable sampling rate" in refusal(tmp_path, patch(write("WAV", WAVE_N), (24, "<I", 0)))
    frame = encode("mp3", "libmp3lame", WAVE_N, options={"write_xing": "0", "id3v2_version": "0"})[:144]
    assert "too short or damaged" in refusal(tmp_path, frame)
    other = encode("nut", "aac", tone(44_100), 44_100)
    assert refusal(tmp_path, other).endswith("the container is damaged, or of a kind that is not read")


@pytest.mark.parametrize("head", [b"RIFF\xff\xff\xff\xffWAVE", write("W64", WAVE_N)[:40]])
def test_zeros_behind_a_header_are_refused_at_once(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "zeros.wav"
    path.write_bytes(head + bytes(20_000_000))
    assert refusal(tmp_path, path.read_bytes()).endswith("No 'data' chunk marker")


def test_a_mac_folders_file_of_metadata_disturbs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("._").touch()
    Path("recording.mp3").write_bytes(write("MP3", WAVE_N))
    Path("words.mp3").write_bytes(b"words and words\n" * 500)
    decoder = Decoder()
    assert len(decoder.load("recording.mp3", RATE_HZ)) == len(WAVE_N)
    with pytest.raises(ClipError, match="Format not recognised"):  # not "bad resource fork"
        decoder.load("words.mp3", RATE_HZ)
    decoder.close()
