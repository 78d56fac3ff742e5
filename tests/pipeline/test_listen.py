"""`listen` shows what the timeline of the same sound says, from a pipe, a recording or a microphone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bundles import write_run
from rich.console import Console

import ast_core
from ast_core.errors import UserError
from ast_core.evaluation.audio_tagger import AudioTagger
from pipeline.cli.listen_settings import ListenSettings
from pipeline.listen import listen
from pipeline.listening import sound_sources
from pipeline.listening.listen_display import draw_table
from pipeline.listening.local_listener import Heard, LocalListener
from pipeline.listening.sound_sources import SoundReader

RATE_HZ = 16_000
HOP_S = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_run(run)
    return run / "bundles" / "ensemble"


@pytest.fixture(scope="module")
def model(folder: Path) -> AudioTagger:
    return ast_core.load(folder, device="cpu")


def sound(seconds: float, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    """Return noise whose loudness changes, as 16-bit samples [N, channels]."""
    rng = np.random.default_rng(0)
    loud_N1 = np.repeat(rng.uniform(0, 2, 50), int(seconds * rate_hz / 50))[:, None]
    return (3000 * rng.normal(0, 1, (len(loud_N1), channels)) * loud_N1).clip(-32768, 32767).astype("<i2")


def to_wav(samples: np.ndarray, rate_hz: int = RATE_HZ, file_format: str = "WAV") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate_hz, format=file_format)
    return content.getvalue()


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Return the function that puts bytes into standard input while it is read."""
    ends = []

    def start(content: bytes) -> None:
        read_end, write_end = os.pipe()
        ends.append(read_end)
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(fileno=lambda: read_end))

        def write() -> None:
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(content)

        threading.Thread(target=write, daemon=True).start()

    yield start
    for own in ends:
        os.close(own)


def read_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def expect_timeline(found: list[dict[str, Any]], model: AudioTagger, samples: np.ndarray, rate_hz: int) -> None:
    """Check the windows against those of the timeline that end at the same time."""
    timeline = model.timeline(samples, rate_hz, hop_s=HOP_S, edges=True)
    ends_s = np.round(timeline.starts_s + timeline.window_s, 4)
    expected = dict(zip(ends_s.tolist(), timeline.top(3), strict=True))
    same = [(own["probabilities"], expected[own["end_s"]]) for own in found if own["end_s"] in expected]
    assert len(same) >= len(found) - 1 > 3
    for own, other in same:
        assert own == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("kind", ["wav", "pcm", "recording"])
@pytest.mark.parametrize(("rate_hz", "channels"), [(RATE_HZ, 1), (44_100, 2)])
def test_results_are_those_of_the_timeline(
    kind: str, rate_hz: int, channels: int, folder: Path, model: AudioTagger, feed, capsys, tmp_path: Path
) -> None:
    samples = sound(2, rate_hz, channels)
    settings = {"model": str(folder), "hop_s": HOP_S, "top_k": 3, "json_lines": True, "gpus": "no"}
    if kind == "wav":
        feed(to_wav(samples, rate_hz))
        lags = listen(ListenSettings("-", **settings))
    elif kind == "pcm":
        feed(samples.tobytes())
        lags = listen(ListenSettings("-", sample_rate_hz=rate_hz, channels=channels, **settings))
    else:
        (tmp_path / "a.flac").write_bytes(to_wav(samples, rate_hz, "FLAC"))
        lags = listen(ListenSettings(str(tmp_path / "a.flac"), **settings))
    found = read_lines(capsys)
    expect_timeline(found, model, samples, rate_hz)
    assert found[-1]["end_s"] == pytest.approx(2.0, abs=0.011)
    assert lags.windows == len(found)


def test_sound_in_real_time_has_results_while_it_comes(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.listen", "-", "--model", str(folder), "--hop-s", "0.3", "--json-lines"]
    with (tmp_path / "err").open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdin is not None
        assert process.stdout is not None
        content = to_wav(sound(4))
        head, samples = content[:44], content[44:]
        process.stdin.write(head + samples[: RATE_HZ // 2])
        process.stdin.flush()
        process.stdout.readline()  # the model is loaded
        started_s, piece = time.monotonic(), RATE_HZ // 10 * 2
        pieces = [samples[place : place + piece] for place in range(RATE_HZ // 2, len(samples), piece)]
        for number, own in enumerate(pieces, 1):
            time.sleep(max(0.0, started_s + number * 0.1 - time.monotonic()))
            process.stdin.write(own)
            process.stdin.flush()
        rest, _ = process.communicate(timeout=60)
    lags_s = [json.loads(line)["lag_s"] for line in rest.splitlines()]
    assert process.returncode == 0
    assert len(lags_s) >= 11
    assert sorted(lags_s)[len(lags_s) // 2] < 1  # a busy machine is slow; waiting for the end would take 2 s
    assert "s heard, " in (tmp_path / "err").read_text()


def test_a_reader_of_the_lines_that_ends_ends_listen(folder: Path) -> None:
    command = [sys.executable, "-m", "pipeline.listen", "-", "--model", str(folder), "--hop-s", "0.1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(sound(0.5).tobytes())
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(sound(5).tobytes())
            process.stdin.close()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (to_wav(sound(1), file_format="FLAC"), "The pipe holds FLAC; listen takes WAV or raw PCM from a pipe: ffmpeg"),
        (to_wav(sound(1))[:-100], "truncated: 31900 of 32000 bytes"),
        (b"RIFFabcd", "it does not begin with RIFF and WAVE"),
        (bytes(20), "less than one window"),
        (b"", "less than one window"),
        (bytes(16_001), "the last 1 bytes are less than one sample"),
    ],
)
def test_a_pipe_that_cannot_be_used_is_refused_by_a_sentence(
    content: bytes, sentence: str, folder: Path, feed, capsys
) -> None:
    feed(content)
    with pytest.raises(UserError, match=sentence):
        listen(ListenSettings("-", str(folder), HOP_S, gpus="no"))


def test_a_terminal_in_place_of_a_pipe_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = os.openpty()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(fileno=lambda: ends[1]))
    with pytest.raises(UserError, match="Standard input is a terminal; send sound through a pipe: ffmpeg"):
        listen(ListenSettings("-", str(folder), HOP_S, gpus="no"))
    for own in ends:
        os.close(own)


def fake_sounddevice(chunks: list[bytes], after: Callable[[], object] = lambda: None) -> types.ModuleType:
    """Return a package sounddevice whose microphone records these chunks at 48 kHz, and then calls a function."""
    module: Any = types.ModuleType("sounddevice")

    class PortAudioError(Exception):
        pass

    class Stream:
        def __init__(self, callback: Any, **settings: Any) -> None:
            assert settings["samplerate"] == 48_000
            self._callback = callback

        def __enter__(self) -> None:
            for own in chunks:
                self._callback(own, len(own) // 2, None, None)
            after()

        def __exit__(self, *_: object) -> None:
            module.closed = True

    def query(name: Any, kind: str) -> dict[str, float]:
        if name == "gone":
            raise ValueError("No input device matching 'gone'")
        return {"default_samplerate": 48_000.0}

    module.PortAudioError, module.RawInputStream, module.query_devices = PortAudioError, Stream, query
    return module


def test_a_microphone_is_heard_until_ctrl_c(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    samples = sound(1, 48_000)
    chunks = [samples[place : place + 4800].tobytes() for place in range(0, 48_000, 4800)]
    module = fake_sounddevice(chunks, threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT)).start)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        lags = listen(ListenSettings(model=str(folder), hop_s=HOP_S, gpus="no"))
    finally:
        signal.signal(signal.SIGINT, before)
    output = capsys.readouterr()
    assert lags.windows == len(output.out.splitlines()) >= 4
    assert "windows. Results came" in output.err
    assert module.closed


def test_a_microphone_that_cannot_be_used_is_refused_by_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match="The microphone needs the package sounddevice: `pip install sounddevice`"):
        listen(ListenSettings(model=str(folder), hop_s=HOP_S, gpus="no"))
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([]))
    with pytest.raises(UserError, match="The microphone cannot be used: No input device matching 'gone'"):
        listen(ListenSettings(model=str(folder), hop_s=HOP_S, device="gone", gpus="no"))
    monkeypatch.setattr(sound_sources, "HELD_OF_MICROPHONE", 3)
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([bytes(9600)] * 5))
    with pytest.raises(UserError, match="behind the microphone; give a longer --hop-s"):
        listen(ListenSettings(model=str(folder), hop_s=HOP_S, gpus="no"))


def test_a_model_that_is_behind_says_so_and_computes_several_windows_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, feed, capsys
) -> None:
    monkeypatch.setattr("pipeline.listen.BEHIND_HOPS", -20)
    feed(sound(1).tobytes())
    listen(ListenSettings("-", str(folder), HOP_S, real_time=True, gpus="no"))
    assert capsys.readouterr().err.count("behind the sound; give a longer --hop-s") == 1


def test_a_reader_holds_little_of_a_fast_source() -> None:
    taken = []

    def pieces() -> Iterator[np.ndarray]:
        for number in range(1000):
            taken.append(number)
            yield np.zeros(100, np.float32)

    reader = SoundReader(pieces(), RATE_HZ, real_time=False)
    time.sleep(0.2)
    assert len(taken) <= sound_sources.HELD_PIECES + 1
    assert sum(len(own.wave_N) for own in reader) == 100_000


def test_the_table_shows_classes_by_name_and_the_lag(model: AudioTagger) -> None:
    listener = LocalListener(model._predictor, HOP_S)
    (heard, *_) = listener.listen(SoundReader([np.ones(3000, np.float32)], RATE_HZ, real_time=False))
    assert isinstance(heard, Heard)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(draw_table(heard, ["[bold]dog", *model.labels[1:]], 2, HOP_S))
    text = console.export_text()
    assert "s, every 0.2 s, lag 0." in text
    assert len(text.splitlines()) == 3
