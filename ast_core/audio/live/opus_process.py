"""Run the process that decodes one Opus stream: pages come on standard input, samples go to standard output.

FFmpeg asks for the next bytes and waits for them, so a process fits a stream that arrives slowly. It can also be
killed at any time, and a stream that crashes it costs no other stream.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from typing import BinaryIO

from ast_core.audio.decoder_process import MEMORY_MB, limit_memory
from ast_core.audio.ffmpeg_decoder import decode_opus_stream
from ast_core.audio.waveform import convert_blocks
from ast_core.errors import ClipError

HEADER = struct.Struct("<IIQ")
"""Kind, bytes of the answer, and bytes of the stream that were read before it."""
BLOCK, END, REFUSED = range(3)
"""Kinds of answers: float32 samples; the end of the stream; why it is refused, as [stage, reason]."""
MOST_SILENT_BYTES = 1 << 20
"""Bytes without a decoded sample after which a stream is refused."""


class Feed:
    """Standard input as FFmpeg reads it: each read returns what is there, and waits only if nothing is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.read_bytes = 0
        self.limit = MOST_SILENT_BYTES
        """Place at which the stream is refused."""
        self.ended = False
        """Whether the stream was read to its end."""
        self.error: ClipError | None = None

    def read(self, count: int) -> bytes:
        """Return at least one byte, and at most `count`; none at the end."""
        if self.read_bytes >= self.limit:
            self.error = ClipError("decode", f"{MOST_SILENT_BYTES} bytes of the stream have no sound")
            return b""
        content = os.read(self._descriptor, count)
        self.read_bytes += len(content)
        self.ended = not content
        return content


def serve(form: str, sample_rate_hz: int) -> None:
    """Decode the stream on standard input.

    Args:
        form: FFmpeg's name of the container: `ogg` or `matroska`.
        sample_rate_hz: sampling rate of the samples.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    limit_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    feed, answers, samples = Feed(sys.stdin.fileno()), sys.stdout.buffer, 0
    try:
        for block_N in convert_blocks(decode_opus_stream(feed, form), sample_rate_hz):
            feed.limit = feed.read_bytes + MOST_SILENT_BYTES
            samples += len(block_N)
            _write(answers, BLOCK, block_N.tobytes(), feed)
        _require_end(feed)
        _write(answers, END, b"", feed)
    except ClipError as error:
        _refuse(answers, feed.error or error, feed, samples / sample_rate_hz)
    except MemoryError:
        large = ClipError("decode", f"decoding it takes more than {MEMORY_MB} MB of memory")
        _refuse(answers, large, feed, samples / sample_rate_hz)
    except BrokenPipeError:
        return


def _require_end(feed: Feed) -> None:
    """Raise ClipError if FFmpeg stopped before the end of the stream."""
    if feed.error is not None:
        raise feed.error
    if not feed.ended:
        raise ClipError("decode", f"FFmpeg reads nothing after byte {feed.read_bytes} of the stream")


def _refuse(answers: BinaryIO, error: ClipError, feed: Feed, decoded_s: float) -> None:
    where = f"the decoder stopped at about {decoded_s:.1f} s: " if decoded_s else ""
    _write(answers, REFUSED, json.dumps([error.stage, where + error.reason]).encode(), feed)


def _write(answers: BinaryIO, kind: int, content: bytes, feed: Feed) -> None:
    answers.write(HEADER.pack(kind, len(content), feed.read_bytes))
    answers.write(content)
    answers.flush()
