"""Heartbeats of worker processes: every worker of ours writes a counter to the key-value store of Ray's head.

Ray waits for ever for a process that is stopped (SIGSTOP) or hangs. The driver's `LivenessWatch` reads the heartbeats
and kills a worker whose counter stands still.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import ray
from ray.exceptions import RayError

from pipeline.ray_runtime.internals import kv_delete, kv_get, kv_list, kv_put

HEARTBEAT_EVERY_S = 3.0
PREFIX = "heartbeat:"


@dataclass(frozen=True)
class Heartbeat:
    """What a worker process last wrote of itself."""

    process: int
    node: str
    node_id: str
    """Ray's id of the node."""
    task: str
    """What the worker does, such as "rank 0"; empty between two tasks."""
    count: int
    """Heartbeats that this process has sent."""

    def describe_process(self) -> str:
        """Return the process and its node, for messages."""
        return f"process {self.process} on {self.node}"


class _Sender:
    """The thread of a worker process that sends its heartbeats until the driver no longer watches."""

    def __init__(self, watch: str) -> None:
        self.watch = watch
        context = ray.get_runtime_context()
        self._key = f"{PREFIX}{watch}:{context.get_worker_id()}".encode()
        self._last = Heartbeat(os.getpid(), os.uname().nodename, context.get_node_id(), "", 0)
        self._lock = threading.Lock()
        threading.Thread(target=self._send_all, name="heartbeat", daemon=True).start()

    def send(self, task: str | None = None) -> None:
        """Send a heartbeat; with the task of the one before, unless another is given."""
        with self._lock, contextlib.suppress(RayError):  # the head is away: the next heartbeat may reach it
            task = self._last.task if task is None else task
            self._last = replace(self._last, task=task, count=self._last.count + 1)
            kv_put(self._key, json.dumps(asdict(self._last)).encode())

    def _send_all(self) -> None:
        watched = True
        while watched:
            time.sleep(HEARTBEAT_EVERY_S)
            with contextlib.suppress(RayError):
                watched = bool(kv_get(f"{PREFIX}{self.watch}".encode()))
                if watched:
                    self.send()
        kv_delete(self._key)


_senders: dict[str, _Sender] = {}
"""This process's sender by the name of the watch: one at most, since a worker works for one stage at a time."""


def start_heartbeat(watch: str, task: str) -> None:
    """Send heartbeats from this worker process from now on.

    Args:
        watch: name of the driver's `LivenessWatch`.
        task: what this worker does, for messages.
    """
    if watch not in _senders:
        _senders.clear()
        _senders[watch] = _Sender(watch)
    _senders[watch].send(task)


@contextlib.contextmanager
def send_heartbeats(watch: str, task: str) -> Iterator[None]:
    """Name a task in this process's heartbeats while the task runs; the heartbeats go on after it."""
    start_heartbeat(watch, task)
    try:
        yield
    finally:
        _senders[watch].send("")


def read_heartbeats(watch: str) -> dict[bytes, Heartbeat]:
    """Return the last heartbeat of each worker, by its key in the store.

    Args:
        watch: name of a `LivenessWatch`, or the first words of it up to a colon.
    """
    found = {key: read_heartbeat(key) for key in kv_list(f"{PREFIX}{watch}:".encode())}
    return {key: heartbeat for key, heartbeat in found.items() if heartbeat is not None}


def read_heartbeat(key: bytes) -> Heartbeat | None:
    """Return the last heartbeat under a key; None if it was removed, or if the key is the watch's own."""
    value = kv_get(key)
    return Heartbeat(**json.loads(value)) if value.startswith(b"{") else None
