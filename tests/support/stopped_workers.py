"""Stop a worker of a stage that runs in this process, and wait until it is reported and gone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from trainings import gone, wait


class Stopper:
    """Stops a process, and waits until it is reported and gone.

    Args:
        victim: returns the process, once it is to be stopped.
        said: file to which the report is to be written.
    """

    def __init__(self, victim: Callable[[], psutil.Process | None], said: Path) -> None:
        self.victim, self.said = victim, said
        self.named_s = self.gone_s = 0.0
        self.name = ""
        self.process = 0

    def __call__(self) -> None:
        """In a thread of its own."""
        found: list[psutil.Process] = []
        wait(lambda: found.extend([own] if (own := self.victim()) else []) or found, "a worker to stop")
        (victim,) = found
        self.process = victim.pid
        victim.send_signal(signal.SIGSTOP)
        wait(lambda: victim.status() == psutil.STATUS_STOPPED, "the stop")
        try:
            self.named_s = wait(lambda: f"(process {victim.pid} on" in self.said.read_text(), "its name")
            self.name = self.said.read_text()
            self.gone_s = self.named_s + wait(lambda: gone(victim), "its end")
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def said_to(path: Path) -> Iterator[None]:
    """Write stderr to a file."""
    with path.open("w", buffering=1) as file, contextlib.redirect_stderr(file):
        yield
