"""Run the process of a `Decoder`: requests come on standard input, blocks of samples go to standard output.

Each answer is a header (kind, length) and its bytes. The module imports little, because each crash costs a new start
(0.3 s).
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
"""Kinds of answers: float32 samples; the end of the file; [stage, reason]; [errno, text]."""
MEMORY_MB = 512
"""Memory for decoding, on top of what the imports take. A block needs less; a false header that needs more fails."""
STATM = Path("/proc/self/statm")
"""Linux's file with the number of pages of the process that reads it."""
ORPHANED_S = 60.0
"""Seconds beyond the Decoder's own limit after which this process ends itself: the Decoder must have ended by then."""


def serve(limit_s: float, content: int) -> None:
    """Answer the requests on standard input, which are lines of JSON.

    Args:
        limit_s: seconds that the Decoder waits for an answer.
        content: descriptor of the file into which the Decoder writes a recording that has no path.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the Decoder's process
    # libsndfile takes a file `._` in the current folder for a part of every file. The paths in requests are absolute.
    os.chdir("/")
    limit_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump for each broken file would fill the disk
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    for line in requests:
        path, sample_rate_hz, max_seconds = json.loads(line)
        if path is None:
            os.lseek(content, 0, os.SEEK_SET)
        source = content if path is None else path
        try:
            _answer_request(answers, source, sample_rate_hz, max_seconds, limit_s + ORPHANED_S)
        except BrokenPipeError:
            return


def _answer_request(
    answers: BinaryIO, source: str | int, sample_rate_hz: int, max_seconds: float | None, limit_s: float
) -> None:
    """Decode one file and write its blocks, then its end or its error."""
    try:
        blocks = read_blocks(source, sample_rate_hz, max_seconds)
        while True:
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            block = next(blocks, None)
            signal.setitimer(signal.ITIMER_REAL, 0)  # the Decoder may take its time to read the answer
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


def limit_memory() -> None:
    """Limit the address space to what this process has now and `MEMORY_MB` more."""
    # macOS has no /proc and its kernel does not enforce RLIMIT_AS. Files are decoded without the limit there, as in
    # containers without /proc: a crash or hang still costs only its file, and the system may kill a process that takes
    # too much.
    if not STATM.is_file():
        return
    pages = int(STATM.read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_MB * 1_000_000
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
