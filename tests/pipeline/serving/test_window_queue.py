"""Windows of concurrent requests share batches, and no request waits for another one's length."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ast_core.audio.fbank import Fbank
from ast_core.config import FrontEndConfig
from ast_core.evaluation.window_cuts import Window
from pipeline.serving.batching.window_queue import HELD_OF_STREAM, MOST_FAILURES, WindowQueue

FBANK = Fbank(FrontEndConfig(target_frames=16))
BATCH = 4


class Recorder:
    """A model that returns the number of each window, and waits before each batch until the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None

    def run_windows(self, _: Fbank, windows: Sequence[Window]) -> Sequence[Any]:
        """Return the numbers of the windows, or raise the error."""
        assert self.go.acquire(timeout=20)
        self.batches.append([window.num_frames for window in windows])
        if self.error is not None:
            raise self.error
        return self.batches[-1]


def windows(first: int, count: int) -> Iterator[Window]:
    for number in range(first, first + count):
        yield Window(torch.zeros(1), number)


@pytest.fixture
def queue() -> Iterator[WindowQueue]:
    own = WindowQueue(batch=BATCH)
    yield own
    own.close()


def test_a_short_recording_does_not_wait_for_a_long_one(queue: WindowQueue) -> None:
    model = Recorder()
    with ThreadPoolExecutor() as pool:
        long = pool.submit(queue.feed, model, FBANK, windows(0, 100))
        while queue.waiting < HELD_OF_STREAM:
            pass
        short = queue.feed(model, FBANK, windows(1000, 1))
        model.go.release()  # the batch that was taken before the short recording came
        model.go.release()
        assert short.result(20) == [1000]
        model.go.release(100)
        assert long.result().result(20) == list(range(100))


def test_results_are_in_the_order_of_the_windows_of_each_recording(queue: WindowQueue) -> None:
    model = Recorder()
    model.go.release(1000)
    with ThreadPoolExecutor(8) as pool:
        fed = [pool.submit(queue.feed, model, FBANK, windows(1000 * n, n)) for n in range(24)]
        assert [own.result().result(20) for own in fed] == [list(range(1000 * n, 1001 * n)) for n in range(24)]
    assert max(map(len, model.batches)) <= BATCH
    assert queue.waiting == 0


def test_windows_of_different_models_are_in_different_batches(queue: WindowQueue) -> None:
    models = [Recorder(), Recorder()]
    fed = [queue.feed(model, FBANK, windows(100 * n, 6)) for n, model in enumerate(models)]
    for model in models:
        model.go.release(10)
    assert [own.result(20) for own in fed] == [list(range(6)), list(range(100, 106))]
    assert all(number < 100 for batch in models[0].batches for number in batch)


def test_a_failed_batch_fails_its_requests_and_no_others(queue: WindowQueue) -> None:
    bad, good = Recorder(), Recorder()
    bad.error = RuntimeError("out of memory")
    for number in range(MOST_FAILURES):
        assert queue.healthy
        failed = queue.feed(bad, FBANK, windows(0, 9))
        bad.go.release()
        with pytest.raises(RuntimeError, match="out of memory"):
            failed.result(20)
        assert len(bad.batches) == number + 1
    assert not queue.healthy
    good.go.release()
    assert queue.feed(good, FBANK, windows(7, 1)).result(20) == [7]
    assert queue.healthy
    assert queue.waiting == 0


def test_a_recording_that_breaks_off_leaves_no_windows(queue: WindowQueue) -> None:
    model = Recorder()

    def broken() -> Iterator[Window]:
        yield from windows(0, 10)
        raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        queue.feed(model, FBANK, broken())
    model.go.release(5)
    assert queue.feed(model, FBANK, windows(50, 2)).result(20) == [50, 51]
    assert queue.waiting == 0


def test_a_client_that_left_stops_its_recording(queue: WindowQueue) -> None:
    model, stop = Recorder(), threading.Event()
    with ThreadPoolExecutor() as pool:
        endless = pool.submit(queue.feed, model, FBANK, windows(0, 10**9), stop)
        while queue.waiting < HELD_OF_STREAM:
            pass
        stop.set()
        with pytest.raises(InterruptedError):
            endless.result(20)
        model.go.release(50)


def test_whatever_waits_fails_when_the_queue_is_closed() -> None:
    queue, model = WindowQueue(batch=BATCH), Recorder()
    fed = queue.feed(model, FBANK, windows(0, 9))
    model.go.release()
    queue.close()
    with pytest.raises(InterruptedError):
        fed.result(20)
    assert not queue.healthy
