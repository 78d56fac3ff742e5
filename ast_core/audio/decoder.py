"""Decoding in a process of its own: a file on which the decoder crashes, hangs or takes all memory costs that file.

Decoders are C libraries, and recordings come from anywhere. The waveforms are `ast_core.audio.waveform`'s to the bit.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from ast_core.audio.decoder_process import BLOCK, CLIP_ERROR, END, HEADER
from ast_core.audio.waveform import Waveform, join_blocks
from ast_core.errors import ClipError

LIMIT_S = 120.0
"""A minute of audio decodes in a tenth of a second; a busy machine with a slow disk has room in this."""
_ROOT = Path(__file__).resolve().parents[2]
# One thread: OpenBLAS would map memory for each core. By putenv, for it is numpy's C code that reads it.
_START = (
    "import os, sys; os.putenv('OPENBLAS_NUM_THREADS', '1'); sys.path.insert(0, sys.argv[1]); "
    "from ast_core.audio.decoder_process import serve; serve(float(sys.argv[2]))"
)
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
"""What a process does to itself. Any other signal came from outside, and says nothing about a file."""
_REAP_S = 10.0


class _Lost(Exception):  # noqa: N818  # says what happened; who catches it says whose fault that is
    """The process ended, or is silent."""

    def __init__(self, what: str, is_clips: bool) -> None:
        super().__init__(what)
        self.is_clips = is_clips
        """Whether it may be the file that did it."""


class Decoder:
    """Decodes one file after another in a process that is started when needed, and again when a file has ended it.

    Args:
        limit_s: seconds without an answer after which the process is taken for hanging, and killed.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._used = False
        self._forget: weakref.finalize[[subprocess.Popen[bytes]], Decoder] | None = None

    def load(self, path: Path | str, sample_rate_hz: int, max_seconds: float | None = None) -> Waveform:
        """As `load_waveform`, and ClipError("decode", ...) too where the file crashes, stops or bloats the decoder."""
        return join_blocks(self.blocks(path, sample_rate_hz, max_seconds), sample_rate_hz, max_seconds)

    def blocks(self, path: Path | str, sample_rate_hz: int, max_seconds: float | None = None) -> Iterator[Waveform]:
        """As `read_blocks`, with `load`'s errors. One file at a time.

        What a file did to the process may show at the next one: a file is blamed only for what it does to a fresh one.
        """
        given = 0
        while True:
            blamed = not self._used
            try:
                for number, block in enumerate(self._attempt(path, sample_rate_hz, max_seconds)):
                    if number >= given:  # decoding is a pure function: a second attempt gives the same blocks
                        given += 1
                        yield block
            except _Lost as lost:
                if blamed and not lost.is_clips:
                    raise OSError(errno.ECHILD, f"{lost}; is there enough memory?") from None
                if blamed:
                    raise ClipError("decode", str(lost)) from None
            else:
                return

    def close(self) -> None:
        """End the process, if there is one. The next file starts another."""
        if self._forget is not None:
            self._forget()
        self._process, self._forget, self._used = None, None, False

    def _attempt(self, path: Path | str, sample_rate_hz: int, max_seconds: float | None) -> Iterator[Waveform]:
        whole = False
        try:
            process = self._started()
            _ask(process, [str(Path.cwd() / path), sample_rate_hz, max_seconds])
            while (answer := self._answer(process))[0] == BLOCK:
                yield np.frombuffer(answer[1], np.float32)
            whole = True
        finally:
            if not whole:  # killed if it hangs; and what was not read would be taken for the next file's
                self.close()
        kind, content = answer
        if kind == END:
            return
        first, second = json.loads(content)
        raise ClipError(first, second) if kind == CLIP_ERROR else OSError(first, second)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-c", _START, str(_ROOT), str(self._limit_s)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
            self._forget = weakref.finalize(self, _end, self._process)
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> tuple[int, bytearray]:
        kind, length = HEADER.unpack(self._read(process, HEADER.size))
        self._used = True
        return kind, self._read(process, length)

    def _read(self, process: subprocess.Popen[bytes], length: int) -> bytearray:
        content, done, deadline = bytearray(length), 0, time.monotonic() + self._limit_s
        pipe = cast("IO[bytes]", process.stdout).fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        while done < length:
            if not ready.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                raise _Lost(f"the decoder gave no answer in {self._limit_s:g} s", True)
            count = os.readv(pipe, [memoryview(content)[done:]])
            if not count:
                raise _ended(process)
            done += count
        return content


def _ask(process: subprocess.Popen[bytes], request: list[object]) -> None:
    requests = cast("IO[bytes]", process.stdin)
    with contextlib.suppress(BrokenPipeError):  # it ended: reading says how
        requests.write(json.dumps(request).encode() + b"\n")
        requests.flush()


@dataclass(frozen=True)
class Recording:
    """A file as blocks of its waveform, decoded anew each time that one goes through them."""

    path: Path
    sample_rate_hz: int
    decoder: Decoder

    def __iter__(self) -> Iterator[Waveform]:
        """Blocks; errors as `Decoder.load`, some of them after the last block."""
        return self.decoder.blocks(self.path, self.sample_rate_hz)

    def beginning(self, seconds: float) -> Waveform:
        """Its first seconds, or all where it is shorter; errors as `Decoder.load`."""
        return self.decoder.load(self.path, self.sample_rate_hz, seconds)


def _ended(process: subprocess.Popen[bytes]) -> _Lost:
    code = process.wait(_REAP_S)
    if code >= 0:
        raise RuntimeError(f"the decoder's process ended with exit code {code}")  # it wrote why on stderr
    is_clips = -code in _CRASHES
    return _Lost(f"the decoder {'crashed' if is_clips else 'was killed'} ({signal.Signals(-code).name})", is_clips)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it; OSError where not even that helps, since it waits for a disk or a mount that is gone."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        raise OSError(errno.EIO, "the decoder waits for its disk or mount, which does not answer") from None
