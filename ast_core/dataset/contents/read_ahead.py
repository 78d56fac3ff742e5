"""Read ahead in threads, with bounds on what is held, and return the results in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
READS = 8
"""Number of reads at the same time. One read of a small object waits for the store most of its time."""
HELD_BYTES = 64 << 20
"""Bytes that are read ahead at most; a larger item is read alone."""


def read_ahead(items: Iterator[ItemT]) -> Iterator[ItemT]:
    """Yield the items of an iterator, the next one of which a thread makes meanwhile."""
    end = object()
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # it is not `end`


def read_objects(objects: Iterable[Callable[[], tuple[int, Callable[[], ItemT]]]]) -> Iterator[ItemT]:
    """Yield the content of each object in order, and read the next ones meanwhile.

    Args:
        objects: functions that open an object, and return its number of bytes and the function that reads it. They
            run in threads.
    """
    with ThreadPoolExecutor(READS, "read-ahead") as threads:
        opened: deque[Future[tuple[int, Callable[[], ItemT]]]] = deque()
        reads: deque[tuple[int, Future[ItemT]]] = deque()
        left = iter(objects)
        try:
            while True:
                for _, opening in zip(range(READS - len(opened) - len(reads)), left, strict=False):
                    opened.append(threads.submit(opening))
                while opened and (not reads or opened[0].done()):
                    size, read = opened[0].result()
                    if reads and sum(held for held, _ in reads) + size > HELD_BYTES:
                        break
                    opened.popleft()
                    reads.append((size, threads.submit(read)))
                if not reads:
                    return
                yield reads.popleft()[1].result()
        finally:
            threads.shutdown(cancel_futures=True)
