"""Threads that decode recordings of requests, each with a decoder process of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ast_core.audio.decoder import Decoder
from ast_core.audio.waveform import Waveform
from ast_core.errors import ClipError
from ast_core.evaluation.window_cuts import MeasuredBlocks
from pipeline.serving.batching.recording_jobs import RecordingJob
from pipeline.serving.batching.window_queue import WindowQueue

MOST_DECODERS = 8
"""Highest number of decoder processes for short recordings, of 40 MB each."""
LONG_DECODERS = 2
"""Decoders for long recordings, which hold theirs until most of their windows are computed."""
LONG_BYTES = 1 << 20
"""Size of a file from which it counts as long: half a minute of WAV, five minutes of Opus."""


@dataclass(frozen=True)
class Feeding:
    """A recording whose windows are all in the queue or computed."""

    parts: tuple[Future[list[Any]], ...]
    """Results of the windows, for each filterbank of the job."""
    length_s: float


class DecoderPool:
    """Decoders of one replica.

    Args:
        windows: queue that the windows are put into.
        max_seconds: longest recording.
    """

    def __init__(self, windows: WindowQueue, max_seconds: float) -> None:
        self._windows, self._max_seconds = windows, max_seconds
        cores = os.cpu_count() or 1
        self._pools = [_Decoders(min(MOST_DECODERS, max(2, cores)), "decode"), _Decoders(LONG_DECODERS, "decode-long")]

    def submit(self, content: bytes, sample_rate_hz: int, job: RecordingJob, stop: threading.Event) -> Future[Feeding]:
        """Decode a recording in a thread, and put its windows into the queue.

        The future raises `ClipError` if the recording cannot be used.

        Args:
            content: content of the recording's file.
            sample_rate_hz: rate of the model.
            job: what to make of the recording.
            stop: event that ends the work, because the client left.
        """
        pool = self._pools[len(content) >= LONG_BYTES]
        return pool.threads.submit(self._feed, pool, content, sample_rate_hz, job, stop)

    def close(self) -> None:
        """End the threads and the decoders' processes."""
        for pool in self._pools:
            pool.close()

    def _feed(
        self, pool: _Decoders, content: bytes, sample_rate_hz: int, job: RecordingJob, stop: threading.Event
    ) -> Feeding:
        if stop.is_set():
            raise InterruptedError("The client left.")
        if not content:
            raise ClipError("read", "the file is empty")
        decoder = pool.idle.get()
        try:
            blocks = MeasuredBlocks(_LimitedBlocks(decoder, content, sample_rate_hz, self._max_seconds))
            parts = tuple(
                self._windows.feed(job.runner, fbank, job.cut(fbank, blocks), stop) for fbank in job.filterbanks
            )
            return Feeding(parts, blocks.samples / sample_rate_hz)
        finally:
            pool.idle.put(decoder)


class _Decoders:
    """Threads, and as many decoders, which start their processes when they are needed."""

    def __init__(self, count: int, name: str) -> None:
        self.threads = ThreadPoolExecutor(count, name, _use_one_thread)
        self.idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._all = [Decoder() for _ in range(count)]
        for decoder in self._all:
            self.idle.put(decoder)

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)
        for decoder in self._all:
            decoder.close()


def _use_one_thread() -> None:
    """Let torch compute in the calling thread alone: the filterbanks of several recordings are computed at once."""
    torch.get_num_threads()  # the first call in a thread would set the number of the process again
    torch.set_num_threads(1)


@dataclass(frozen=True)
class _LimitedBlocks(Iterable[np.ndarray]):
    """The blocks of a recording; ClipError if it is too long."""

    decoder: Decoder
    content: bytes
    sample_rate_hz: int
    max_seconds: float

    def __iter__(self) -> Iterator[Waveform]:
        samples = 0
        # A decoder with a limit does not notice a file that is cut off, so the limit is checked here.
        for block_N in self.decoder.blocks(self.content, self.sample_rate_hz):
            samples += len(block_N)
            if samples > self.max_seconds * self.sample_rate_hz:
                raise ClipError("read", f"it is longer than {self.max_seconds:g} s, the most that this server takes")
            yield block_N
