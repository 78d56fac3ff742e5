"""A thread that looks at something again and again while a stage runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Poller:
    """A context manager that calls `look` every `every_s` seconds in a thread, and once more at the end.

    An exception of `look` ends the thread; the last call, in the thread of the caller, raises it there.

    Args:
        every_s: seconds between two calls.
        look: function to call; the thread and the caller never run it at the same time.
    """

    def __init__(self, every_s: float, look: Callable[[], None]) -> None:
        self._every_s = every_s
        self._look = look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"poll {look.__qualname__}", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread and look once more."""
        self._stop.set()
        self._thread.join()
        self._look()

    def _poll(self) -> None:
        while not self._stop.wait(self._every_s):
            self._look()
