"""The process in which a `Decoder` decodes: paths in, blocks of samples out, until its input ends.

A header of a kind and a length before each answer's bytes. Imports little: a crash costs a start, 0.3 s.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from ast_core.audio.waveform import read_blocks
from ast_core.errors import ClipError

HEADER = struct.Struct("<II")
BLOCK, END, CLIP_ERROR, DISK_ERROR = range(4)
"""Kinds of answers: float32 samples; nothing more; [stage, reason]; [errno, text]."""
MEMORY_MB = 512
"""Beyond what the imports take: blocks need less, a header that promises more than there is fails by itself."""
ORPHANED_S = 60.0
"""More than a Decoder waits for: by then it is gone, and this process ends itself, though it hang in a library."""


def serve(limit_s: float) -> None:
    """Answer requests, a line of JSON each, on standard input.

    Args:
        limit_s: that the Decoder waits for an answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the Decoder's process
    _limit()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    for line in requests:
        path, sample_rate_hz, max_seconds = json.loads(line)
        try:
            _answer(answers, path, sample_rate_hz, max_seconds, limit_s + ORPHANED_S)
        except BrokenPipeError:
            return


def _answer(answers: BinaryIO, path: str, sample_rate_hz: int, max_seconds: float | None, limit_s: float) -> None:
    try:
        blocks = read_blocks(path, sample_rate_hz, max_seconds)
        while True:
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            block = next(blocks, None)
            signal.setitimer(signal.ITIMER_REAL, 0)  # whoever reads the answer may take its time
            if block is None:
                break
            _write(answers, BLOCK, block.tobytes())
        kind, content = END, b""
    except BrokenPipeError:
        raise
    except ClipError as error:
        kind, content = CLIP_ERROR, json.dumps([error.stage, error.reason]).encode()
    except MemoryError:
        reason = f"decoding it takes more than {MEMORY_MB} MB of memory"
        kind, content = CLIP_ERROR, json.dumps(["decode", reason]).encode()
    except OSError as error:
        kind, content = DISK_ERROR, json.dumps([error.errno or errno.EIO, error.strerror or str(error)]).encode()
    signal.setitimer(signal.ITIMER_REAL, 0)
    _write(answers, kind, content)


def _write(answers: BinaryIO, kind: int, content: bytes) -> None:
    answers.write(HEADER.pack(kind, len(content)))
    answers.write(content)
    answers.flush()


def _limit() -> None:
    """No memory but what decoding needs, and no core dump: a crash a file would fill the disk."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_MB * 1_000_000
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
