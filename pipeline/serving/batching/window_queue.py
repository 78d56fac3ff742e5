"""Windows of concurrent requests in one batch: a queue that decode threads fill, and one thread that computes.

A batch takes one window from each request in turn, so a long recording does not delay a short one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ast_core.audio.fbank import Fbank
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, Window

LINGER_S = 0.003
"""Longest time that a batch waits for windows of recordings that are being decoded."""
HELD_OF_STREAM, HELD = 2 * WINDOWS_AT_ONCE, 16 * WINDOWS_AT_ONCE
"""Windows of one recording and of all that wait at most; a window of 10 s takes half a megabyte."""
MOST_FAILURES = 3
"""Failed batches in a row after which the queue is not healthy: the GPU is lost, or its memory is full."""


class WindowRunner(Protocol):
    """A model on its device that takes windows of many recordings in one batch."""

    def run_windows(self, fbank: Fbank, windows: Sequence[Window]) -> Sequence[Any]:
        """Return what the model makes of each window."""


@dataclass(eq=False)
class _Stream:
    """The windows of one recording by one filterbank."""

    runner: WindowRunner
    fbank: Fbank
    done: Future[list[Any]] = field(default_factory=Future)
    waiting: deque[Window] = field(default_factory=deque)
    parts: list[Any] = field(default_factory=list)
    fed: int = 0
    ended: bool = False

    def shares_batch(self, other: _Stream) -> bool:
        """Return whether windows of both can be in one batch."""
        return self.runner is other.runner and self.fbank is other.fbank


class WindowQueue:
    """A queue of windows, and the thread that runs models on them.

    Args:
        threads: threads of torch for a batch on a CPU; 0 for one a core.
        batch: windows of a batch at most.
        on_batch: function that is called with the number of windows of each batch that was computed.
    """

    def __init__(
        self, threads: int = 0, batch: int = WINDOWS_AT_ONCE, on_batch: Callable[[int], None] = lambda _: None
    ) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._batch, self._on_batch = batch, on_batch
        self._changed = threading.Condition()  # its lock is reentrant
        self._turns: deque[_Stream] = deque()
        """Streams with windows that wait; the first one is next."""
        self._feeding = 0
        """Streams that are not complete."""
        self._held = 0
        self._failures = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the thread computes, and its last batches did not all fail."""
        return self._thread.is_alive() and self._failures < MOST_FAILURES

    @property
    def waiting(self) -> int:
        """Number of windows that wait for the model."""
        return self._held

    def feed(
        self, runner: WindowRunner, fbank: Fbank, windows: Iterable[Window], stop: threading.Event | None = None
    ) -> Future[list[Any]]:
        """Put the windows of a recording into the queue; wait only while too many of them are in it.

        Args:
            runner: model to run. Streams with the same one share batches.
            fbank: filterbank that the windows are of.
            windows: windows, which are made while others are computed.
            stop: event that ends the feeding, because the client left.

        Returns:
            Results of the windows, in their order, once they are computed.

        Raises:
            Exception: an error of `windows`, or of the model; the windows that wait are dropped.
        """
        stream = _Stream(runner, fbank)
        with self._changed:
            self._feeding += 1
        try:
            for window in windows:
                self._put(stream, window, stop)
                if stream.done.done():  # the model failed
                    break
        except BaseException:
            self._drop(stream)
            raise
        finally:
            with self._changed:
                self._feeding -= 1
                stream.ended = True
                self._finish(stream)
                self._changed.notify_all()
        return stream.done

    def close(self) -> None:
        """End the thread after its batch; whatever waits fails."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, stream: _Stream, window: Window, stop: threading.Event | None) -> None:
        with self._changed:
            while len(stream.waiting) >= HELD_OF_STREAM or self._held >= HELD:
                if self._closed or stream.done.done() or (stop is not None and stop.is_set()):
                    break
                self._changed.wait(1)
            if self._closed or (stop is not None and stop.is_set()):
                raise InterruptedError("The server stopped, or the client left.")
            if stream.done.done():
                return
            if not stream.waiting:
                self._turns.append(stream)
            stream.waiting.append(window)
            stream.fed += 1
            self._held += 1
            self._changed.notify_all()

    def _drop(self, stream: _Stream) -> None:
        """Take the windows of a stream out of the queue."""
        with self._changed:
            self._held -= len(stream.waiting)
            if stream.waiting:
                self._turns.remove(stream)
                stream.waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._take():
            windows, first = [window for _, window in batch], batch[0][0]
            torch.set_num_threads(self._threads)  # Ray allows an actor one, and MKL has one number for all threads
            try:
                parts: Sequence[Any] = first.runner.run_windows(first.fbank, windows)
            except Exception as error:  # noqa: BLE001  # each request of the batch reports it
                self._failures += 1
                self._fail({own for own, _ in batch}, error)
                continue
            self._failures = 0
            self._on_batch(len(batch))
            with self._changed:
                for (stream, _), part in zip(batch, parts, strict=True):
                    stream.parts.append(part)
                for stream in {own for own, _ in batch}:
                    self._finish(stream)

    def _finish(self, stream: _Stream) -> None:
        """Set the result of a stream that is complete."""
        if stream.ended and len(stream.parts) == stream.fed and not stream.done.done():
            stream.done.set_result(stream.parts)

    def _take(self) -> list[tuple[_Stream, Window]]:
        """Wait for windows, and return those of the next batch; none after `close`."""
        with self._changed:
            while not self._closed:
                while not self._turns and not self._closed:
                    self._changed.wait()
                until = time.monotonic() + LINGER_S
                while self._feeding and self._held < self._batch and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                if batch := self._deal():  # none if their requests were cancelled
                    self._held -= len(batch)
                    self._changed.notify_all()
                    return batch
            self._fail(set(self._turns), InterruptedError("The server stopped."))
            return []

    def _deal(self) -> list[tuple[_Stream, Window]]:
        """Take one window of each stream in turn, of those that share a batch with the first one."""
        batch: list[tuple[_Stream, Window]] = []
        others: deque[_Stream] = deque()
        first = self._turns[0] if self._turns else None
        while self._turns and len(batch) < self._batch:
            stream = self._turns.popleft()
            if first is None or not stream.shares_batch(first):
                others.append(stream)
                continue
            batch.append((stream, stream.waiting.popleft()))
            if stream.waiting:
                self._turns.append(stream)
        self._turns.extendleft(reversed(others))
        return batch

    def _fail(self, streams: set[_Stream], error: Exception) -> None:
        with self._changed:
            for stream in streams:
                if not stream.done.done():
                    stream.done.set_exception(error)
                self._drop(stream)
