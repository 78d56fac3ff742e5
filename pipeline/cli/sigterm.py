"""SIGTERM, as `kill`, `ray job stop`, Kubernetes and batch systems send it: a stage ends in order, and soon."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""As a shell reports a program that SIGTERM ended."""
EXIT_LIMIT_S = 19.0
"""After so many seconds the program ends at once: whoever asked it to go kills it after 30 s, if not before."""
_asked = threading.Event()


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM interrupts as Ctrl-C does, and a second one is ignored; the main thread's business only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Inside, something may put its own answer to SIGTERM in the place of ours, as `ray.init` does: it is put back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is _interrupt and not _asked.is_set():
            signal.signal(signal.SIGTERM, before)


def sigterm_received() -> bool:
    """Whether SIGTERM has come: a KeyboardInterrupt is Ctrl-C otherwise."""
    return _asked.is_set()


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked.set()
    last = threading.Timer(EXIT_LIMIT_S, os._exit, [EXIT_CODE])
    last.daemon = True
    last.start()
    raise KeyboardInterrupt


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit meanwhile, so that what was started is stopped."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
