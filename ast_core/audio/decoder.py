"""Decode files in a separate process, so that a file that crashes or hangs the decoder costs only that file.

Decoders are C libraries, and recordings are untrusted input. The waveforms are bit by bit those of
`ast_core.audio.waveform`.
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
from tempfile import TemporaryFile
from typing import IO, BinaryIO, cast

import numpy as np

from ast_core.audio.decoder_process import BLOCK, CLIP_ERROR, END, HEADER
from ast_core.audio.waveform import Waveform, join_blocks
from ast_core.errors import ClipError

LIMIT_S = 120.0
"""Default wait for an answer. A minute of audio decodes in 0.1 s; the rest is for busy machines and slow disks."""
_ROOT = Path(__file__).resolve().parents[2]
# OpenBLAS gets one thread, because it maps memory for each core. numpy's C code reads the variable, hence putenv.
_START = (
    "import os, sys; os.putenv('OPENBLAS_NUM_THREADS', '1'); sys.path.insert(0, sys.argv[1]); "
    "from ast_core.audio.decoder_process import serve; serve(float(sys.argv[2]), int(sys.argv[3]))"
)
_HELD_BYTES = 16 << 20
"""Largest recording whose memory is kept for the next one: new pages cost more than the copy."""
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
"""Signals that a process raises by its own fault. Any other signal came from outside and says nothing about a file."""
_REAP_S = 10.0
"""Longest wait for a killed process to end."""


class _DecoderLostError(Exception):
    """The decoder's process ended, or does not answer."""

    def __init__(self, reason: str, may_be_clip: bool) -> None:
        super().__init__(reason)
        self.may_be_clip = may_be_clip
        """Whether the file may have caused it."""


class Decoder:
    """A decoder of one file after another, in a process that is started when needed and again after a crash.

    Args:
        limit_s: seconds without an answer after which the process is killed.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._content: BinaryIO | None = None
        """File without a name that the process reads recordings from which have no path."""
        self._used = False
        self._kill: weakref.finalize[[subprocess.Popen[bytes], BinaryIO], Decoder] | None = None

    def load(self, source: Path | str | bytes, sample_rate_hz: int, max_seconds: float | None = None) -> Waveform:
        """Decode a file, or the content of one, as `load_waveform` does.

        Raises:
            ClipError: as `load_waveform`; also stage `decode` if the file crashes or hangs the decoder, or takes too
                much memory.
            OSError: the fault of the disk or the system, not of the file.
        """
        return join_blocks(self.blocks(source, sample_rate_hz, max_seconds), sample_rate_hz, max_seconds)

    def blocks(
        self, source: Path | str | bytes, sample_rate_hz: int, max_seconds: float | None = None
    ) -> Iterator[Waveform]:
        """Decode a file, or the content of one, as `read_blocks` does, with the errors of `load`.

        Only one file at a time.

        The damage that a file does to the process may show only at the next file. So a file is blamed only if it was
        the first in its process; otherwise it is decoded again in a new process.
        """
        yielded = 0
        while True:
            first_in_process = not self._used
            try:
                for number, block in enumerate(self._attempt(source, sample_rate_hz, max_seconds)):
                    if number >= yielded:  # decoding is a pure function: a second attempt returns the same blocks
                        yielded += 1
                        yield block
            except _DecoderLostError as lost:
                if first_in_process and not lost.may_be_clip:
                    raise OSError(errno.ECHILD, f"{lost}; is there enough memory?") from None
                if first_in_process:
                    raise ClipError("decode", str(lost)) from None
            else:
                return

    def close(self) -> None:
        """End the process, if it runs. The next file starts another."""
        if self._kill is not None:
            self._kill()
        self._process, self._content, self._kill, self._used = None, None, None, False

    def _attempt(
        self, source: Path | str | bytes, sample_rate_hz: int, max_seconds: float | None
    ) -> Iterator[Waveform]:
        """Decode a file once. Ends the process unless its answer was read to the end."""
        complete = False
        try:
            process, held = self._start_process()
            if isinstance(source, bytes):
                _write_content(held, source)
            _send_request(process, source, sample_rate_hz, max_seconds)
            while (answer := self._read_answer(process))[0] == BLOCK:
                yield np.frombuffer(answer[1], np.float32)
            if isinstance(source, bytes) and len(source) > _HELD_BYTES:
                held.truncate(0)
            complete = True
        finally:
            if not complete:  # it may hang, and the unread rest would be taken for the next file's answer
                self.close()
        kind, content = answer
        if kind == END:
            return
        first, second = json.loads(content)
        raise ClipError(first, second) if kind == CLIP_ERROR else OSError(first, second)

    def _start_process(self) -> tuple[subprocess.Popen[bytes], BinaryIO]:
        """Return the decoder's process, and the file that it reads; start it if it does not run."""
        if self._process is None or self._content is None:
            content = _open_nameless_file()
            descriptor = content.fileno()
            command = [sys.executable, "-c", _START, str(_ROOT), str(self._limit_s), str(descriptor)]
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor]
            )
            self._content = content
            self._kill = weakref.finalize(self, _kill_process, self._process, content)
        return self._process, self._content

    def _read_answer(self, process: subprocess.Popen[bytes]) -> tuple[int, bytearray]:
        """Read one answer: its kind and its content."""
        kind, length = HEADER.unpack(self._read(process, HEADER.size))
        self._used = True
        return kind, self._read(process, length)

    def _read(self, process: subprocess.Popen[bytes], length: int) -> bytearray:
        """Read `length` bytes; `_DecoderLostError` if they do not come in time or the process ended."""
        content, done, deadline = bytearray(length), 0, time.monotonic() + self._limit_s
        pipe = cast("IO[bytes]", process.stdout).fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        while done < length:
            if not ready.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                raise _DecoderLostError(f"the decoder gave no answer in {self._limit_s:g} s", True)
            count = os.readv(pipe, [memoryview(content)[done:]])
            if not count:
                raise _explain_end(process)
            done += count
        return content


def _open_nameless_file() -> BinaryIO:
    """Return a new file in memory, or on disk where the system has no such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("recording"), "w+b", buffering=0)
    return TemporaryFile(buffering=0)


def _write_content(file: BinaryIO, content: bytes) -> None:
    """Replace a file's content; its position, which both processes share, is not moved."""
    done, view = 0, memoryview(content)
    while done < len(content):
        done += os.pwrite(file.fileno(), view[done:], done)
    file.truncate(len(content))


def _send_request(
    process: subprocess.Popen[bytes], source: Path | str | bytes, sample_rate_hz: int, max_seconds: float | None
) -> None:
    """Send a line of JSON: the absolute path, or null for the content that was written, the rate, and the limit."""
    requests = cast("IO[bytes]", process.stdin)
    path = None if isinstance(source, bytes) else str(Path.cwd() / source)
    with contextlib.suppress(BrokenPipeError):  # the process ended: reading its answer says how
        requests.write(json.dumps([path, sample_rate_hz, max_seconds]).encode() + b"\n")
        requests.flush()


@dataclass(frozen=True)
class Recording:
    """A file as an iterable of its waveform's blocks; each iteration decodes it again."""

    path: Path
    """Path of the file, or the name of a recording whose content is given."""
    sample_rate_hz: int
    decoder: Decoder
    content: bytes | None = None
    """Content of the file if it is not read from the path."""

    def __iter__(self) -> Iterator[Waveform]:
        """Yield the blocks. Errors are those of `Decoder.load`; some are raised after the last block."""
        return self.decoder.blocks(self._source, self.sample_rate_hz)

    def read_beginning(self, seconds: float) -> Waveform:
        """Return the first seconds, or all of a shorter recording. Errors are those of `Decoder.load`."""
        return self.decoder.load(self._source, self.sample_rate_hz, seconds)

    @property
    def _source(self) -> Path | bytes:
        return self.path if self.content is None else self.content


def _explain_end(process: subprocess.Popen[bytes]) -> _DecoderLostError:
    """Return the error for a process that ended by a signal; RuntimeError if it ended by itself."""
    code = process.wait(_REAP_S)
    if code >= 0:
        raise RuntimeError(f"the decoder's process ended with exit code {code}")  # its stderr says why
    crashed = -code in _CRASHES
    name = signal.Signals(-code).name
    return _DecoderLostError(f"the decoder {'crashed' if crashed else 'was killed'} ({name})", crashed)


def _kill_process(process: subprocess.Popen[bytes], content: BinaryIO) -> None:
    """Kill a process; OSError if it does not end, because it waits for a disk or mount that does not answer."""
    process.kill()
    content.close()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        raise OSError(errno.EIO, "the decoder waits for its disk or mount, which does not answer") from None
