"""Clients that ask a server without a pause, and count what they see."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Self

import psutil
from served_app import ServedProcess


class Clients:
    """Clients that ask until the context ends.

    Args:
        server: server to ask.
        count: number of clients.
        body: recording that they send.
        headers: headers of their requests.
    """

    def __init__(self, server: ServedProcess, count: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.seen: Counter[str] = Counter()
        """Number of answers by version, or by what went wrong."""
        self.refused: list[float] = []
        """Times at which nothing listened on the port."""
        self._server, self._body, self._headers = server, body, headers
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Self:
        """Start to ask."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let each client end its request."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> int:
        """Number of requests that had no answer with probabilities."""
        return sum(count for what, count in self.seen.items() if not what.startswith("version"))

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                answer = self._server.post("/v1/predict", self._body, self._headers)
            except ConnectionRefusedError:
                self.refused.append(time.monotonic())
                time.sleep(0.05)
                continue
            except (OSError, http.client.HTTPException) as error:
                self.seen[repr(error)] += 1
                continue
            good = answer.status == 200
            self.seen[f"version {answer.json['model']['version']}" if good else f"HTTP {answer.status}"] += 1


def find_replicas(server: ServedProcess) -> list[psutil.Process]:
    """Return the processes of the replicas."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [own for own in children if "ServeReplica" in " ".join(own.cmdline())]
