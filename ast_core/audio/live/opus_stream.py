"""An Opus stream in Ogg or WebM that is decoded while it arrives. Needs the extra `ffmpeg`.

Shapes: N samples.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from ast_core.audio.live.opus_process import END, HEADER, REFUSED
from ast_core.audio.waveform import Waveform
from ast_core.errors import ClipError

CONTAINERS = {"ogg_opus": "ogg", "webm_opus": "matroska"}
"""FFmpeg's name of each container."""
_ROOT = Path(__file__).resolve().parents[3]
_START = (
    "import os, sys; os.putenv('OPENBLAS_NUM_THREADS', '1'); sys.path.insert(0, sys.argv[1]); "
    "from ast_core.audio.live.opus_process import serve; serve(sys.argv[2], int(sys.argv[3]))"
)
_REAP_S = 10.0


class OpusBlock(NamedTuple):
    """Decoded samples."""

    wave_N: Waveform
    """Mono samples, float32 [N]."""
    read_bytes: int
    """Bytes of the stream that had been read when they were decoded."""


def has_ffmpeg() -> bool:
    """Return whether the extra `ffmpeg` is installed."""
    return importlib.util.find_spec("av") is not None


class OpusStream:
    """A stream, and the process that decodes it. `write` and `read` may wait, so call them from two threads.

    Args:
        form: `ogg_opus` or `webm_opus`.
        sample_rate_hz: sampling rate of the samples.
    """

    def __init__(self, form: str, sample_rate_hz: int) -> None:
        command = [sys.executable, "-c", _START, str(_ROOT), CONTAINERS[form], str(sample_rate_hz)]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._input, self._output = (cast("IO[bytes]", pipe) for pipe in (self._process.stdin, self._process.stdout))
        self._kill = weakref.finalize(self, _kill_process, self._process)

    def write(self, content: bytes) -> None:
        """Write further bytes; wait while the decoder is behind."""
        view, done = memoryview(content), 0
        with contextlib.suppress(BrokenPipeError):  # the process ended: reading says why
            while done < len(view):
                done += os.write(self._input.fileno(), view[done:])

    def end(self) -> None:
        """Say that no bytes come any more."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def read(self) -> OpusBlock | None:
        """Wait for the next samples; return None at the end.

        Raises:
            ClipError: stage `decode`; the stream is damaged, holds something else than Opus, or crashed its decoder.
        """
        kind, length, read_bytes = HEADER.unpack(self._read(HEADER.size))
        content = self._read(length)
        if kind == END:
            return None
        if kind == REFUSED:
            raise ClipError(*json.loads(content))
        return OpusBlock(np.frombuffer(content, np.float32), read_bytes)

    def close(self) -> None:
        """End the process."""
        self._kill()

    def _read(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            part = os.read(self._output.fileno(), length - len(content))
            if not part:
                raise ClipError("decode", f"the decoder ended with exit status {self._process.wait(_REAP_S)}")
            content += part
        return bytes(content)


def _kill_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(_REAP_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
