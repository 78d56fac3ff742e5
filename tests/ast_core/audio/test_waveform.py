"""Decoding: accepted files, and every refused file with its reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]

from ast_core.audio.waveform import Waveform, load_waveform
from ast_core.errors import ClipError


def noise(samples: int, seed: int = 0) -> Waveform:
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def refusal(path: Path) -> ClipError:
    with pytest.raises(ClipError) as caught:
        load_waveform(path, 16_000)
    assert str(path) not in caught.value.reason
    return caught.value


def test_samples_come_back_as_written(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1000), 16_000, subtype="FLOAT")
    read = load_waveform(tmp_path / "a.wav", 16_000)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, noise(1000))


def test_mono_is_the_mean_of_any_number_of_channels(tmp_path: Path) -> None:
    channels = noise(8 * 500).reshape(500, 8)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_waveform(tmp_path / "a.wav", 16_000), channels.mean(axis=1), atol=1e-7)


def test_resampling_keeps_a_tone_and_the_length(tmp_path: Path) -> None:
    time = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 44_100, subtype="FLOAT")
    read = load_waveform(tmp_path / "a.wav", 16_000)
    assert len(read) == 16_000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(read[200:-200], expected[200:-200], atol=1e-3)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_max_seconds_reads_the_same_beginning(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.flac", noise(5 * rate), rate)
    start = load_waveform(tmp_path / "a.flac", 16_000, max_seconds=2.0)
    assert len(start) == 32_000
    np.testing.assert_allclose(start, load_waveform(tmp_path / "a.flac", 16_000)[:32_000], atol=1e-4)


def test_silence_is_accepted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 2)), 16_000)
    assert not load_waveform(tmp_path / "a.wav", 16_000).any()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "w64"])
@pytest.mark.parametrize("keep", ["a third", "all but the last byte"])
def test_a_cut_file_is_noticed(tmp_path: Path, suffix: str, keep: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(48_000), 16_000)
    assert len(load_waveform(path, 16_000)) == 48_000
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3 if keep == "a third" else -1])
    assert refusal(path).stage == "decode"


def test_a_wav_with_an_open_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1000), 16_000)
    content = bytearray(path.read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(load_waveform(path, 16_000)) == 1000


def test_channels_that_cancel_out_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([noise(999), -noise(999)], 1), 16_000)
    assert "cancel out" in refusal(tmp_path / "a.wav").reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_not_finite_or_too_large_are_refused(tmp_path: Path, value: float) -> None:
    wave = noise(1000)
    wave[500] = value
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    assert "finite samples" in refusal(tmp_path / "a.wav").reason


@pytest.mark.parametrize(("content", "stage"), [(b"", "read"), (b"<html>404</html>", "decode"), (b"RIFF", "decode")])
def test_files_that_are_not_audio_are_refused(tmp_path: Path, content: bytes, stage: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    assert refusal(tmp_path / "a.wav").stage == stage


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0), 16_000)
    assert refusal(tmp_path / "a.wav").reason == "the file has no samples"


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_an_impossible_rate_is_refused(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1000), 16_000)
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    assert str(rate) in refusal(path).reason


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name in ("fifo.wav", "folder.wav", "loop.wav", "absent.wav"):
        assert refusal(tmp_path / name).stage == "read", name
