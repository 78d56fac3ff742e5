"""The sound that `listen` hears: of a microphone, of a pipe, or of a recording.

Shapes: N samples.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_core.audio.decoder import Decoder, Recording
from ast_core.audio.live.pcm_stream import PcmFormat, PcmStream
from ast_core.audio.live.wav_header import read_wav_header
from ast_core.audio.truncation import truncated
from ast_core.audio.waveform import Waveform
from ast_core.errors import ClipError, UserError
from pipeline.cli.listen_settings import MICROPHONE, PIPE, ListenSettings

HELD_PIECES = 8
"""Pieces of a pipe or a recording that wait for the model at most; a pipe's writer waits, too."""
HELD_OF_MICROPHONE = 600
"""Pieces of a microphone, which does not wait: a minute."""
PIECE_S = 0.1
_READ_BYTES = 4096
_OTHER_FORMATS = {b"OggS": "Ogg", b"\x1a\x45\xdf\xa3": "WebM", b"fLaC": "FLAC"}
CONVERT = "ffmpeg -i INPUT -f s16le -ac 1 -ar 16000 - | ast-pipeline listen -"


@dataclass(frozen=True)
class Sound:
    """A piece of sound."""

    wave_N: Waveform
    """Samples at the model's rate, float32 [N]."""
    arrived_s: float
    """Time at which its last sample was there, by the monotonic clock."""


class SoundReader:
    """Reads a source in a thread, so that sound arrives while the model computes.

    Args:
        pieces: the waveform.
        sample_rate_hz: its rate.
        real_time: whether to take it no faster than it lasts.
    """

    def __init__(self, pieces: Iterable[Waveform], sample_rate_hz: int, real_time: bool) -> None:
        self._pieces, self._rate_hz, self._real_time = pieces, sample_rate_hz, real_time
        self._queue: queue.Queue[Sound | BaseException | None] = queue.Queue(HELD_PIECES)
        threading.Thread(target=self._read, name="read sound", daemon=True).start()

    @property
    def empty(self) -> bool:
        """Whether no sound waits."""
        return self._queue.empty()

    def __iter__(self) -> Iterator[Sound]:
        """Yield the pieces as they arrive; errors are those of the source."""
        while (sound := self._queue.get()) is not None:
            if isinstance(sound, BaseException):
                raise sound
            yield sound

    def _read(self) -> None:
        started_s, samples = time.monotonic(), 0
        try:
            for wave_N in self._pieces:
                samples += len(wave_N)
                arrived_s = time.monotonic()
                if self._real_time:
                    due_s = started_s + samples / self._rate_hz
                    time.sleep(max(0.0, due_s - arrived_s))
                    arrived_s = due_s
                self._queue.put(Sound(wave_N, arrived_s))
        except BaseException as error:  # noqa: BLE001  # raised again where the sound is used
            self._queue.put(error)
        self._queue.put(None)


@contextlib.contextmanager
def open_sound(settings: ListenSettings, sample_rate_hz: int) -> Iterator[SoundReader]:
    """Open the source of a command.

    Args:
        settings: settings of `listen`.
        sample_rate_hz: rate of the model.

    Raises:
        UserError: the microphone cannot be used, or the pipe holds another format.
    """
    if settings.source == MICROPHONE:
        with _open_microphone(settings.device, sample_rate_hz) as pieces:
            yield SoundReader(pieces, sample_rate_hz, real_time=False)
        return
    if settings.source == PIPE:
        if os.isatty(sys.stdin.fileno()):
            raise UserError(f"Standard input is a terminal; send sound through a pipe: {CONVERT}")
        pcm = PcmFormat(settings.sample_rate_hz, settings.channels)
        pieces = read_pipe(sys.stdin.fileno(), pcm, sample_rate_hz)
    else:
        pieces = _split(Recording(Path(settings.source), sample_rate_hz, Decoder()), sample_rate_hz)
    yield SoundReader(pieces, sample_rate_hz, settings.real_time)


def _split(blocks: Iterable[Waveform], sample_rate_hz: int) -> Iterator[Waveform]:
    """Yield blocks in pieces as short as those of a microphone."""
    size = int(PIECE_S * sample_rate_hz)
    for block_N in blocks:
        for start in range(0, len(block_N), size):
            yield block_N[start : start + size]


class _Pipe:
    """A descriptor that is read without Python's buffer, which a thread that waits would lock."""

    def __init__(self, descriptor: int, beginning: bytes = b"") -> None:
        self._descriptor, self._beginning = descriptor, beginning

    def read(self, count: int) -> bytes:
        """Return `count` bytes; fewer only at the end."""
        content = b""
        while len(content) < count and (part := self.read_some(count - len(content))):
            content += part
        return content

    def read_some(self, count: int) -> bytes:
        """Return what is there, at most `count` bytes; none at the end."""
        if self._beginning:
            found, self._beginning = self._beginning[:count], self._beginning[count:]
            return found
        return os.read(self._descriptor, count)


def read_pipe(descriptor: int, pcm: PcmFormat, sample_rate_hz: int) -> Iterator[Waveform]:
    """Yield the waveform of a pipe of WAV, or of raw PCM, as it comes.

    Args:
        descriptor: descriptor of the pipe.
        pcm: format of the samples unless the pipe begins with a WAV header.
        sample_rate_hz: rate of the waveform.

    Raises:
        ClipError: the WAV header is damaged or wrong, or the samples are no audio.
        UserError: the pipe holds another format.
    """
    beginning = _Pipe(descriptor).read(4)
    form = _OTHER_FORMATS.get(beginning)
    if form is not None:
        raise UserError(f"The pipe holds {form}; listen takes WAV or raw PCM from a pipe: {CONVERT}")
    pipe, length = _Pipe(descriptor, beginning), None
    if beginning == b"RIFF":
        pcm, length = read_wav_header(pipe)
    stream, done = PcmStream(pcm, sample_rate_hz), 0
    while length is None or done < length:
        content = pipe.read_some(_READ_BYTES if length is None else min(_READ_BYTES, length - done))
        if not content:
            break
        done += len(content)
        yield stream.add(content)
    yield stream.finish()
    if length is not None and done < length:
        raise truncated(done, length, "bytes")


@contextlib.contextmanager
def _open_microphone(device: str, sample_rate_hz: int) -> Iterator[Iterator[Waveform]]:
    """Record with the package sounddevice, and yield the waveform while it comes."""
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except ImportError:
        raise UserError(
            "The microphone needs the package sounddevice: `pip install sounddevice`. Or use a pipe: "
            f"{CONVERT.replace('-i INPUT', '-f alsa -i default')}"
        ) from None
    except OSError as error:
        raise UserError(
            f"sounddevice does not work: {error}. Install PortAudio, on Debian `apt install libportaudio2`."
        ) from None
    chunks: queue.Queue[bytes | None] = queue.Queue(HELD_OF_MICROPHONE)
    full = threading.Event()

    def record(content: Any, _frames: int, _times: Any, _status: Any) -> None:
        try:
            chunks.put_nowait(bytes(content))
        except queue.Full:
            full.set()

    name = int(device) if device.isdigit() else device or None
    try:
        rate_hz = int(sounddevice.query_devices(name, "input")["default_samplerate"])
        stream = sounddevice.RawInputStream(
            samplerate=rate_hz,
            channels=1,
            dtype="int16",
            device=name,
            blocksize=int(PIECE_S * rate_hz),
            callback=record,
        )
    except (ValueError, sounddevice.PortAudioError) as error:
        raise UserError(f"The microphone cannot be used: {error}. `python -m sounddevice` lists them.") from None
    with stream:
        yield _take_chunks(chunks, full, PcmStream(PcmFormat(rate_hz), sample_rate_hz))


def _take_chunks(chunks: queue.Queue[bytes | None], full: threading.Event, pcm: PcmStream) -> Iterator[Waveform]:
    """Yield the waveform of what a microphone recorded; UserError if a minute of it waits."""
    while (content := chunks.get()) is not None:
        if full.is_set():
            minute = PIECE_S * HELD_OF_MICROPHONE
            raise UserError(
                f"The model is {minute:g} s behind the microphone; give a longer --hop-s or a smaller model."
            )
        yield pcm.add(content)
    yield pcm.finish()


def describe_refusal(error: ClipError, source: str) -> UserError:
    """Return the error of a source that cannot be used."""
    name = "The pipe" if source == PIPE else source
    return UserError(f"{name} cannot be used ({error.stage}): {error.reason}. Send WAV or 16-bit PCM: {CONVERT}")
