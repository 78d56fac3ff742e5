"""What FFmpeg decodes in the same process: every container to its end, cut and encrypted files refused."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from audio_files import RATE_HZ, decode, encode, load, refusal, tone

from ast_core.audio.decoder import Decoder
from ast_core.errors import ClipError

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "500000"}
KINDS: dict[str, dict[str, Any]] = {
    "m4a": {"form": "ipod", "codec": "aac"},
    "m4a, 16 kHz": {"form": "ipod", "codec": "aac", "rate_hz": 16_000},
    "m4a, lossless": {"form": "ipod", "codec": "alac"},
    "mp4, fragmented": {"form": "mp4", "codec": "aac", "options": FRAGMENTS},
    "mp4, Opus": {"form": "mp4", "codec": "libopus", "rate_hz": 48_000},
    "mov": {"form": "mov", "codec": "pcm_s16be"},
    "3gp": {"form": "3gp", "codec": "libopencore_amrnb", "rate_hz": 8000},
    "webm": {"form": "webm", "codec": "libopus", "rate_hz": 48_000},
    "webm, from a pipe": {"form": "webm", "codec": "libopus", "rate_hz": 48_000, "pipe": True},
    "mka": {"form": "matroska", "codec": "aac"},
    "mka, 24 bits": {"form": "matroska", "codec": "pcm_s24le"},
    "mka, 8 bits": {"form": "matroska", "codec": "pcm_u8"},
    "wma": {"form": "asf", "codec": "wmav2", "layout": "stereo", "bit_rate": 128_000},
    "wma 1": {"form": "asf", "codec": "wmav1", "bit_rate": 64_000},
    "avi": {"form": "avi", "codec": "pcm_s16le"},
    "ogg, FLAC": {"form": "ogg", "codec": "flac"},
}
"""Kinds whose containers say a length, so that a cut file is refused."""
STREAMS: dict[str, dict[str, Any]] = {
    "aac": {"form": "adts", "codec": "aac"},
    "aac, 16 kHz": {"form": "adts", "codec": "aac", "rate_hz": 16_000},
    "ac3": {"form": "ac3", "codec": "ac3", "rate_hz": 48_000},
    "eac3": {"form": "eac3", "codec": "eac3", "rate_hz": 48_000},
    "amr": {"form": "amr", "codec": "libopencore_amrnb", "rate_hz": 8000},
    "transport stream": {"form": "mpegts", "codec": "aac"},
    "loas": {"form": "latm", "codec": "aac"},
    "wma, from a pipe": {"form": "asf", "codec": "wmav2", "bit_rate": 64_000, "pipe": True},
    "tta": {"form": "tta", "codec": "tta"},
    "wavpack": {"form": "wv", "codec": "wavpack"},
    "flv": {"form": "flv", "codec": "aac"},
}
"""Kinds without a length, or with a check of their own."""


def test_more_than_eight_channels_are_read(tmp_path: Path) -> None:
    channels, wave_N = 24, tone(44_100, rate_hz=44_100)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("pcm_f32le", rate=44_100)
        stream.layout = f"{channels}c"
        frame = av.AudioFrame.from_ndarray(np.repeat(wave_N, channels)[None], "flt", f"{channels}c")
        frame.sample_rate, frame.pts = 44_100, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    np.testing.assert_allclose(load(tmp_path, file.getvalue(), 44_100), wave_N, atol=1e-6)


def make(kind: str, seconds: float = 1.5) -> tuple[bytes, int]:
    """Return a file and its sampling rate."""
    settings = {**KINDS, **STREAMS}[kind]
    rate_hz = settings.get("rate_hz", 44_100)
    wave_N = tone(int(seconds * rate_hz), rate_hz=rate_hz)
    return encode(**{"wave": wave_N, "rate_hz": rate_hz, **settings}), rate_hz


@pytest.mark.parametrize("kind", [*KINDS, *STREAMS])
def test_the_samples_are_those_of_ffmpeg(tmp_path: Path, kind: str) -> None:
    content, rate_hz = make(kind)
    expected_N = decode(content)
    assert len(expected_N) >= 1.45 * rate_hz
    read_N = load(tmp_path, content, rate_hz)
    np.testing.assert_allclose(read_N, expected_N, atol=1e-6)
    beginning_N = load(tmp_path, content, rate_hz, max_seconds=0.5)
    np.testing.assert_array_equal(beginning_N, read_N[: len(beginning_N)])
    assert len(beginning_N) == rate_hz // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused_with_both_numbers(tmp_path: Path, kind: str) -> None:
    content, rate_hz = make(kind)
    for kept in (len(content) - 1, len(content) // 2):
        found, promised = re.findall(r"truncated: (\d+) of (\d+) bytes", refusal(tmp_path, content[:kept], rate_hz))[0]
        assert int(found) == kept < int(promised) <= len(content) + 1


@pytest.mark.parametrize("kind", ["webm", "webm, from a pipe"])
@pytest.mark.parametrize("damage", [bytes(300), b"\xff" * 300], ids=["zeros", "ones"])
def test_a_file_that_is_damaged_in_the_middle_is_refused(tmp_path: Path, kind: str, damage: bytes) -> None:
    content, rate_hz = make(kind, 6)
    middle = len(content) // 2
    damaged = content[:middle] + damage + content[middle + len(damage) :]
    assert len(decode(damaged)) < len(decode(content))  # FFmpeg itself leaves out a part
    assert "FFmpeg: " in refusal(tmp_path, damaged, rate_hz)


def test_a_cut_file_whose_index_comes_first_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fast.m4a"
    with av.open(str(path), "w", format="ipod", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("aac", rate=44_100)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone(1024)[None], "fltp", "mono")
        frame.sample_rate = 44_100
        for number in range(60):
            frame.pts = 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert len(load(tmp_path, content, 44_100)) == len(decode(content))
    assert re.match(r"truncated: \d+ of \d+ bytes", refusal(tmp_path, content[: len(content) * 2 // 3]))


def test_a_recording_that_was_not_finished_is_named(tmp_path: Path) -> None:
    content, _ = make("m4a")
    assert "the index (moov) of this MP4 file is missing" in refusal(tmp_path, content[: content.index(b"moov") - 4])


@pytest.mark.parametrize("kind", ["aac", "ac3", "amr", "transport stream", "loas"])
def test_a_stream_that_stopped_within_a_frame_is_read_up_to_it(tmp_path: Path, kind: str) -> None:
    content, rate_hz = make(kind)
    whole_N, cut_N = load(tmp_path, content, rate_hz), load(tmp_path, content[: len(content) * 2 // 3], rate_hz)
    assert 0.5 * len(whole_N) < len(cut_N) < len(whole_N)


@pytest.mark.parametrize("kind", ["m4a", "aac", "mka", "ogg, FLAC"])
def test_damage_in_the_middle_is_noticed(tmp_path: Path, kind: str) -> None:
    content, rate_hz = make(kind)
    damaged, middle = bytearray(content), len(content) // 2
    damaged[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    assert refusal(tmp_path, bytes(damaged), rate_hz)


def test_encrypted_files_are_refused_by_name(tmp_path: Path) -> None:
    content, _ = make("m4a")
    for name in (b"enca", b"drms"):
        assert refusal(tmp_path, content.replace(b"mp4a", name)) == f"the audio stream is encrypted ({name.decode()})"


def test_files_without_audio_are_refused_by_name(tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(5):
            picture = av.VideoFrame(64, 64, "yuv420p")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert refusal(tmp_path, file.getvalue()) == "the file has no audio stream; its streams: video"
    empty = encode("ipod", "aac", tone(44_100), 44_100)[:28]
    assert "index (moov)" in refusal(tmp_path, empty)


PLAYLISTS = [
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n",
    b"ffconcat version 1.0\nfile secret.wav\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
]


@pytest.mark.parametrize("content", [*PLAYLISTS, b"<!DOCTYPE html><html>404</html>", b"words and words\n" * 500])
def test_text_and_playlists_are_no_audio(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.wav").write_bytes(encode("wav", "pcm_s16le", tone(8000)))
    monkeypatch.chdir(tmp_path)
    assert refusal(tmp_path, content).startswith("Format not recognised; FFmpeg: ")


def test_without_the_extra_the_reason_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, _ = make("m4a")
    monkeypatch.setitem(sys.modules, "av", None)
    reason = refusal(tmp_path, content)
    assert reason.startswith("Format not recognised; FFmpeg reads more formats (m4a, aac, wma, webm, ...): ")
    assert reason.endswith("pip install 'ast-pipeline[ffmpeg]'")


@pytest.mark.timeout(120)
def test_the_decoders_process_reads_the_same(tmp_path: Path) -> None:
    decoder = Decoder()
    for kind in ("m4a", "wma", "webm", "aac"):
        content, _ = make(kind, 20.0)
        expected_N = load(tmp_path, content)
        np.testing.assert_array_equal(decoder.load(tmp_path / "recording.bin", RATE_HZ), expected_N)
    (tmp_path / "cut.m4a").write_bytes(make("m4a")[0][:-9])
    with pytest.raises(ClipError, match="truncated"):
        decoder.load(tmp_path / "cut.m4a", RATE_HZ)
    decoder.close()
