"""SIGTERM, as `kill`, `ray job stop`, Kubernetes and batch systems send it: a program ends in order, and soon."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator

EXIT_CODE = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM ended, as a shell reports it."""
EXIT_LIMIT_S = 19.0
"""Seconds after which a stage ends at once: the sender of SIGTERM kills it after 30 s, if not before."""
SIGACTION_BYTES = 256
"""More bytes than a `struct sigaction` has: 152 on Linux, 16 on macOS."""
_received = threading.Event()


class _Interrupt:
    """The handler of SIGTERM."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    def __call__(self, number: int, frame: object) -> None:  # noqa: ARG002
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _received.set()
        last = threading.Timer(self._limit_s, os._exit, [EXIT_CODE])
        last.daemon = True
        last.start()
        raise KeyboardInterrupt


@contextlib.contextmanager
def interrupt_on_sigterm(limit_s: float = EXIT_LIMIT_S) -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt inside, as Ctrl-C does; a second SIGTERM is ignored.

    Outside the main thread, which alone receives signals, this does nothing.

    Args:
        limit_s: seconds after the signal at which the process ends, even if it is not done with ending in order.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _Interrupt(limit_s))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exit_on_sigterm(limit_s: float = EXIT_LIMIT_S) -> Iterator[None]:
    """Let SIGTERM interrupt inside, and raise SystemExit with `EXIT_CODE` after it, for programs without a stage.

    Args:
        limit_s: see `interrupt_on_sigterm`.
    """
    try:
        with interrupt_on_sigterm(limit_s):
            yield
    except KeyboardInterrupt:
        if sigterm_received():
            raise SystemExit(EXIT_CODE) from None
        raise


@contextlib.contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Restore our SIGTERM handler at the end, if it was set: `ray.init` replaces it by its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        main = threading.current_thread() is threading.main_thread()  # no other thread may set a handler
        if main and isinstance(before, _Interrupt) and not _received.is_set():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def keep_sigterm_action() -> Iterator[None]:
    """Restore the process's action for SIGTERM at the end, from any thread.

    Python sets handlers in the main thread only, but `ray.init` in a thread makes Ray's C++ code take over the signal.
    """
    libc, before = ctypes.CDLL(None), ctypes.create_string_buffer(SIGACTION_BYTES)
    libc.sigaction(int(signal.SIGTERM), None, before)
    try:
        yield
    finally:
        libc.sigaction(int(signal.SIGTERM), before, None)


def sigterm_received() -> bool:
    """Return whether SIGTERM has come; otherwise, a KeyboardInterrupt is Ctrl-C."""
    return _received.is_set()
