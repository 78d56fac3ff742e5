"""Make hostile recordings of many kinds, and say what `prepare` must do with each: a run must survive all of them."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]

RATE_HZ = 16_000
KEPT = ""
"""Outcome of a kind that is unusual, but audio."""
Make = Callable[[random.Random], bytes]


def _noise(samples: int = 8000, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(7).normal(0, 0.1, (samples, channels))


def _encode(suffix: str, wave: np.ndarray | None = None, rate_hz: int = RATE_HZ, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, _noise() if wave is None else wave, rate_hz, format=suffix, subtype=subtype)
    return file.getvalue()


def _cut(suffix: str) -> Make:
    """Return a maker of files that are cut at a random place behind the header."""

    def make(rng: random.Random) -> bytes:
        whole = _encode(suffix)
        return whole[: rng.randrange(len(whole) // 4, len(whole) - 1)]

    return make


def _flip(suffix: str) -> Make:
    """Return a maker of files with a flipped bit in 200 places of the coded samples."""

    def make(rng: random.Random) -> bytes:
        content = bytearray(_encode(suffix))
        for _ in range(200):
            content[rng.randrange(len(content) // 4, len(content))] ^= 1 << rng.randrange(8)
        return bytes(content)

    return make


def _header(place: int, form: str, value: int) -> Make:
    """Return a maker of WAV files with another value in the header."""

    def make(_: random.Random) -> bytes:
        content = bytearray(_encode("WAV"))
        struct.pack_into(form, content, place, value)
        return bytes(content)

    return make


def _sample(value: float) -> Make:
    def make(rng: random.Random) -> bytes:
        wave = _noise()
        wave[rng.randrange(5000)] = value  # in the 32 frames that the tests keep; later samples are not read
        return _encode("WAV", wave, subtype="FLOAT")

    return make


def _flac_of_a_month(_: random.Random) -> bytes:
    """Return a short FLAC file with all 36 bits of STREAMINFO's number of samples set."""
    content = bytearray(_encode("FLAC"))
    content[21] |= 0x0F
    content[22:26] = b"\xff\xff\xff\xff"
    return bytes(content)


def _many_chunks(_: random.Random) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + 8 * 300_000) + b"WAVE" + b"junk\0\0\0\0" * 300_000


BYTES: dict[str, tuple[str, Make]] = {
    "empty": ("read", lambda _: b""),
    "one byte": ("decode", lambda _: b"R"),
    "four letters": ("decode", lambda _: b"RIFF"),
    "header only": ("decode", lambda _: _encode("WAV", np.zeros((0, 1)))),
    "header only, samples promised": ("decode", lambda _: _encode("WAV")[:44]),
    **{f"cut {suffix}": ("decode", _cut(suffix)) for suffix in ("WAV", "OGG", "MP3", "FLAC", "AIFF", "AU", "W64")},
    "flipped FLAC": ("decode", _flip("FLAC")),
    "flipped OGG": ("decode", _flip("OGG")),
    "not a number": ("decode", _sample(np.nan)),
    "infinite": ("decode", _sample(np.inf)),
    "a sample of 1e30": ("decode", _sample(1e30)),
    "HTML": ("decode", lambda _: b"<!DOCTYPE html><html><title>404 Not Found</title></html>"),
    "video": ("decode", lambda rng: b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + rng.randbytes(20_000)),
    "picture": ("decode", lambda rng: b"\x89PNG\r\n\x1a\n" + rng.randbytes(20_000)),
    "ZIP": ("decode", lambda rng: b"PK\x03\x04" + rng.randbytes(20_000)),
    "UTF-16 text": ("decode", lambda _: "never audio".encode("utf-16")),
    "zeros": ("decode", lambda _: bytes(20_000)),
    "random bytes": ("decode", lambda rng: b"\x01" + rng.randbytes(20_000)),
    "an MP3 frame, then noise": ("decode", lambda _: _encode("MP3")[:200] + b"\0" * 5000),
    "an ID3 tag of 256 MB": ("decode", lambda rng: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + rng.randbytes(500)),
    "1 Hz": ("decode", _header(24, "<I", 1)),
    "4 GHz": ("decode", _header(24, "<I", 4_000_000_000)),
    "0 Hz": ("decode", _header(24, "<I", 0)),
    "no channels": ("decode", _header(22, "<H", 0)),
    "65535 channels": ("decode", _header(22, "<H", 65_535)),
    "0 bits": ("decode", _header(34, "<H", 0)),
    "an unknown codec": ("decode", _header(20, "<H", 0x7777)),
    "300,000 chunks": ("decode", _many_chunks),
    "FLAC of a month, they say": (KEPT, _flac_of_a_month),
    "opposite channels": ("decode", lambda _: _encode("WAV", _noise() * np.array([[1, -1]]))),
    "one sample": ("fbank", lambda _: _encode("WAV", _noise(1))),
    "one short of a window": ("fbank", lambda _: _encode("WAV", _noise(399))),
    "7.1": (KEPT, lambda _: _encode("WAV", _noise(8000, 8))),
    "1000 channels": (KEPT, lambda _: _encode("WAV", _noise(8000, 1000))),
    "8 bit": (KEPT, lambda _: _encode("WAV", subtype="PCM_U8")),
    "silence": (KEPT, lambda _: _encode("FLAC", np.zeros((8000, 1)))),
    "clipped": (KEPT, lambda _: _encode("WAV", np.sign(_noise()))),
    "doubles": (KEPT, lambda _: _encode("WAV", subtype="DOUBLE")),
    "noise behind the end": (KEPT, lambda rng: _encode("WAV") + rng.randbytes(999)),
}
"""The stage that refuses a kind, or KEPT, and the maker of its bytes, by kind."""


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing.wav"))


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has 107 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def ten_hours(path: Path) -> None:
    """Write ten hours of silence."""
    write_silence(path, 10)


def write_silence(path: Path, hours: int) -> None:
    """Write hours of 16-bit zeros as a sparse file, which needs no space on the disk."""
    size = 2 * RATE_HZ * 3600 * hours
    content = bytearray(_encode("WAV", np.zeros((1, 1)))[:44])
    struct.pack_into("<I", content, 4, size + 36)
    struct.pack_into("<I", content, 40, size)
    path.write_bytes(content)
    os.truncate(path, size + 44)


PLACES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "FIFO": ("read", _fifo),
    "link to itself": ("read", _loop),
    "link to nothing": ("read", _dangling),
    "folder": ("read", Path.mkdir),
    "socket": ("read", _socket),
    "ten hours": (KEPT, ten_hours),
}


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it exists."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_hostile(folder: Path, rng: random.Random) -> dict[str, str]:
    """Write one file `bad-NN.wav` for each kind, and return its outcome by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    fates = {}
    for number, (fate, make) in enumerate(BYTES.values()):
        path = folder / f"bad-{number:02d}.wav"
        path.write_bytes(make(rng))
        fates[path.name] = fate
    for number, (fate, put) in enumerate(PLACES.values(), len(BYTES)):
        path = folder / f"bad-{number:02d}.wav"
        remove(path)
        put(path)
        fates[path.name] = fate
    return fates


def kinds() -> list[str]:
    """Return the kinds in the order of the files' numbers."""
    return [*BYTES, *PLACES]
