"""Audio that arrives in pieces has the samples of a file with the same content, and what is no audio is refused."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from audio_files import encode, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_core.audio.live.opus_process import MOST_SILENT_BYTES
from ast_core.audio.live.opus_stream import OpusStream
from ast_core.audio.live.pcm_stream import PcmFormat, PcmStream
from ast_core.audio.live.wav_header import read_wav_header
from ast_core.audio.waveform import load_waveform
from ast_core.errors import ClipError

RATE_HZ = 16_000
SUBTYPES = {"u8": "PCM_U8", "s16le": "PCM_16", "s24le": "PCM_24", "s32le": "PCM_32", "f32le": "FLOAT"}
CONTAINERS = {"ogg_opus": "ogg", "webm_opus": "webm"}
SHORT_PAGES = {"ogg_opus": {"page_duration": "20000"}, "webm_opus": {"cluster_time_limit": "100"}}
"""FFmpeg's options for a stream whose sound is sent at once, by the container."""


def convert(pcm: PcmFormat, content: bytes, size: int) -> np.ndarray:
    stream = PcmStream(pcm, RATE_HZ)
    parts = [stream.add(content[place : place + size]) for place in range(0, len(content), size)]
    return np.concatenate([*parts, stream.finish()])


@pytest.mark.parametrize("kind", SUBTYPES)
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 44_100])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_wav_stream_in_pieces_has_the_samples_of_its_file(tmp_path: Path, kind, rate_hz, channels) -> None:
    samples_NC = np.stack([tone(3000, seed) for seed in range(channels)], axis=1)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples_NC, rate_hz, subtype=SUBTYPES[kind])
    with path.open("rb") as file:
        header = read_wav_header(file, file.read(4))
        content = file.read(header.length)
    assert header.pcm == PcmFormat(rate_hz, channels, kind)
    expected_N = load_waveform(path, RATE_HZ)
    for size in (7, 1000, 10**6):
        np.testing.assert_allclose(convert(header.pcm, content, size), expected_N, atol=1e-7)


def test_lengths_that_programs_write_into_pipes_mean_to_the_end() -> None:
    content = io.BytesIO()
    soundfile.write(content, tone(100), RATE_HZ, format="WAV")
    wav = bytearray(content.getvalue())
    for length, expected in [(0xFFFFFFFF, None), (0, None), (0x7FFFF000, None), (200, 200)]:
        wav[40:44] = length.to_bytes(4, "little")
        assert read_wav_header(io.BytesIO(bytes(wav))).length == expected


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda end: b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + end))
@settings(deadline=None)
def test_a_damaged_wav_header_is_refused_with_a_reason(content: bytes) -> None:
    try:
        frame_bytes = read_wav_header(io.BytesIO(content)).pcm.frame_bytes
    except ClipError:
        return
    assert frame_bytes > 0


def test_a_cut_sample_a_number_that_is_no_audio_and_an_absurd_rate_are_refused() -> None:
    with pytest.raises(ClipError, match="the last 1 bytes are less than one sample of 2 bytes"):
        convert(PcmFormat(RATE_HZ), bytes(5), 2)
    for wrong in (np.nan, np.inf, 1e9):
        with pytest.raises(ClipError, match="a sample is"):
            PcmStream(PcmFormat(RATE_HZ, 1, "f32le"), RATE_HZ).add(np.array([0, wrong], "<f4").tobytes())
    with pytest.raises(ClipError, match="sampling rate is 3 Hz"):
        PcmFormat(3)
    with pytest.raises(ClipError, match="there are 0 channels"):
        PcmFormat(RATE_HZ, 0)


def decode(form: str, content: bytes, size: int = 700, early: int = 0) -> tuple[np.ndarray, str]:
    """Return the samples of a stream that arrives in pieces, and why it is refused.

    Args:
        form: container of the stream.
        content: the stream.
        size: bytes of a piece.
        early: samples that must come of the first half before the second half is sent.
    """
    stream, parts, reason = OpusStream(form, RATE_HZ), [np.empty(0, np.float32)], []

    def read() -> None:
        try:
            while (block := stream.read()) is not None:
                assert block.read_bytes <= len(content)
                parts.append(block.wave_N)
        except ClipError as error:
            reason.append(error.reason)

    thread = threading.Thread(target=read)
    thread.start()
    for place in range(0, len(content), size):
        stream.write(content[place : place + size])
        deadline = time.monotonic() + 60
        while place > len(content) / 2 and sum(map(len, parts)) < early:
            assert time.monotonic() < deadline, "no samples come before the end of the stream"
            time.sleep(0.01)
    stream.end()
    thread.join(60)
    stream.close()
    return np.concatenate(parts), "".join(reason)


@pytest.mark.parametrize("form", CONTAINERS)
def test_an_opus_stream_has_the_samples_of_its_file_while_it_arrives(tmp_path: Path, form: str) -> None:
    wave_N, short = tone(2 * 48_000, rate_hz=48_000), SHORT_PAGES[form]
    content = encode(CONTAINERS[form], "libopus", wave_N, 48_000, pipe=True, layout="stereo", options=short)
    (tmp_path / "a").write_bytes(content)
    found_N, reason = decode(form, content, early=RATE_HZ // 2)
    assert not reason
    np.testing.assert_allclose(found_N, load_waveform(tmp_path / "a", RATE_HZ), atol=1e-5)


@pytest.mark.parametrize("form", CONTAINERS)
def test_a_stream_that_is_no_opus_is_refused_with_a_reason(form: str) -> None:
    noise = np.random.default_rng(0).bytes(2 * MOST_SILENT_BYTES)
    wave_N, experimental = tone(48_000, rate_hz=48_000), {"strict": "-2"}
    other = encode(CONTAINERS[form], "vorbis", wave_N, 48_000, layout="stereo", codec_options=experimental)
    assert decode(form, other)[1] == "the stream holds vorbis, and not Opus"
    for content in (b"", b"OggS", b"\x1a\x45\xdf\xa3", noise):
        found_N, reason = decode(form, content, 1 << 16)
        assert len(found_N) == 0
        assert reason


@pytest.mark.parametrize("form", CONTAINERS)
def test_a_stream_that_goes_on_without_sound_is_refused(form: str) -> None:
    content = encode(CONTAINERS[form], "libopus", tone(48_000, rate_hz=48_000), 48_000, pipe=True)
    length = 3 * MOST_SILENT_BYTES
    void = b"\xec\x01" + length.to_bytes(7)  # an element of WebM without a meaning
    _, reason = decode(form, content + (void if form == "webm_opus" else b"") + bytes(length), 1 << 16)
    assert ("have no sound" if form == "webm_opus" else "Invalid data") in reason


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda content: content[: len(content) // 2] + bytes(300) + content[len(content) // 2 + 300 :],
    "noise to the end": lambda content: (
        content[: len(content) // 2] + np.random.default_rng(0).bytes(len(content) // 2)
    ),
    "bytes that are missing": lambda content: content[: len(content) // 2] + content[len(content) // 2 + 500 :],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", CONTAINERS)
def test_a_stream_that_is_damaged_in_the_middle_is_refused_with_the_place(form: str, damage: str) -> None:
    wave_N, short = tone(4 * 48_000, rate_hz=48_000), SHORT_PAGES[form]
    content = encode(CONTAINERS[form], "libopus", wave_N, 48_000, pipe=True, options=short)
    found_N, reason = decode(form, DAMAGES[damage](content))
    found_s = len(found_N) / RATE_HZ
    assert found_s == pytest.approx(2, abs=0.15)
    assert reason.startswith(f"the decoder stopped at about {found_s:.1f} s: FFmpeg: ")


def test_damage_is_reported_before_the_stream_ends() -> None:
    content = encode("webm", "libopus", tone(2 * 48_000, rate_hz=48_000), 48_000, pipe=True)
    stream = OpusStream("webm_opus", RATE_HZ)
    stream.write(content[: len(content) // 2] + bytes(20_000))
    with pytest.raises(ClipError, match="the decoder stopped at about"):
        list(iter(stream.read, None))
    stream.close()


@pytest.mark.parametrize("form", CONTAINERS)
def test_a_stream_that_lacks_a_second_is_refused(form: str) -> None:
    wave_N, short = tone(4 * 48_000, rate_hz=48_000), SHORT_PAGES[form]
    content = encode(CONTAINERS[form], "libopus", wave_N, 48_000, pipe=True, options=short)
    mark = b"OggS" if form == "ogg_opus" else b"\x1f\x43\xb6\x75"  # where a page or a cluster begins
    first, *parts = content.split(mark)
    cut = len(parts) // 4
    _, reason = decode(form, mark.join([first, *parts[: 2 * cut], *parts[3 * cut :]]))
    assert re.fullmatch(r"the decoder stopped at about (1\.9|2\.0) s: [01]\.\d\d s of the stream are missing", reason)


def test_a_killed_decoder_is_an_error_of_its_stream_and_close_leaves_no_process() -> None:
    stream = OpusStream("ogg_opus", RATE_HZ)
    child = psutil.Process(stream._process.pid)
    child.kill()
    with pytest.raises(ClipError, match="the decoder ended with exit status -9"):
        stream.read()
    stream.write(bytes(100))
    stream.end()
    stream.close()
    other = OpusStream("webm_opus", RATE_HZ)
    other.close()
    assert other._process.returncode is not None
