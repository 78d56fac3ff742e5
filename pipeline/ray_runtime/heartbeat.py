"""Whether the workers of `prepare` live: Ray waits for a process that is stopped (SIGSTOP, a hung machine) for ever.

Each worker has a key in the store of Ray's head, and writes to it while the driver watches. What no longer changes,
though Ray counts the process among the living and its node answers, is named. A node that does not answer, or is gone,
is Ray's to notice: it makes such a node's parts elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator

import ray
import ray._private.state
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ast_core.errors import UserError

NAMESPACE = b"ast-pipeline"
BEAT_EVERY_S = 3.0
LOOK_EVERY_S = 2.0
SILENT_S = 40.0
"""A thread that only writes a key is late by less on a busy machine; with a look it is under a minute."""


class Watch:
    """The driver's: which workers were heard of, and when. `name` is what the workers are given."""

    def __init__(self) -> None:
        self.name = f"prepare:{uuid.uuid4().hex}"
        self._heard: dict[bytes, tuple[bytes, float]] = {}
        self._asked: dict[bytes, ray.ObjectRef[None]] = {}
        self._looked_s = time.monotonic()
        _put(self.name.encode(), b"watched")

    def look(self) -> None:
        """Ask, at most every `LOOK_EVERY_S`, who was heard of; UserError that names a worker that is silent."""
        now = time.monotonic()
        if now - self._looked_s < LOOK_EVERY_S:
            return
        if now - self._looked_s > SILENT_S / 2:
            self._heard.clear()  # it was this process that was stopped
        self._looked_s = now
        with contextlib.suppress(RayError):  # the head is away: Ray says so itself
            for key in _list(f"{self.name}:".encode()):
                beat = _get(key)
                last, since = self._heard.setdefault(key, (beat, now))
                if beat != last:
                    self._heard[key] = (beat, now)
                    self._asked.pop(key, None)
                elif now - since > SILENT_S and _lives(key) and self._node_answers(key, beat):
                    raise UserError(_sentence(beat))

    def _node_answers(self, key: bytes, beat: bytes) -> bool:
        """Whether the node of a silent worker does a task; it has time until the next looks."""
        if key not in self._asked:
            there = NodeAffinitySchedulingStrategy(json.loads(beat)["node_id"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0)(_answer)
            self._asked[key] = task.options(scheduling_strategy=there).remote()
        if not ray.wait([self._asked[key]], timeout=0)[0]:
            return False
        with contextlib.suppress(RayError):  # the node is gone; one that is not is asked again
            ray.get(self._asked.pop(key))
            return True
        return False

    def end(self) -> None:
        """The workers need not beat any more."""
        with contextlib.suppress(RayError):
            _delete(self.name.encode())


def _sentence(beat: bytes) -> str:
    said = json.loads(beat)
    doing = f"makes {said['part']} and " if said["part"] else ""
    return (
        f"A worker, process {said['process']} on node {said['node']}, {doing}has not been heard of for {SILENT_S:.0f} "
        "s: it is stopped or hangs. End that process and run the same command again; finished shards stay."
    )


class _Pulse:
    """A worker process's: the thread that beats, as long as the driver watches."""

    def __init__(self, watch: str) -> None:
        self.watch = watch
        self.part = ""
        self._count = 0
        self._key = f"{watch}:{ray.get_runtime_context().get_worker_id()}".encode()
        self._said = {
            "process": os.getpid(),
            "node": f"{os.uname().nodename} ({ray.util.get_node_ip_address()})",
            "node_id": ray.get_runtime_context().get_node_id(),
        }
        threading.Thread(target=self._go_on, name="heartbeat", daemon=True).start()

    def beat(self) -> None:
        self._count += 1
        said = {"part": self.part, "count": self._count, **self._said}
        with contextlib.suppress(RayError):
            _put(self._key, json.dumps(said).encode())

    def _go_on(self) -> None:
        watched = True
        while watched:
            time.sleep(BEAT_EVERY_S)
            self.beat()
            with contextlib.suppress(RayError):
                watched = bool(_get(self.watch.encode()))
        _delete(self._key)


_pulses: dict[str, _Pulse] = {}


@contextlib.contextmanager
def working(watch: str, part: str) -> Iterator[None]:
    """In a worker: be heard of while it makes a part, and until it is given the next."""
    if watch not in _pulses:
        _pulses.clear()
        _pulses[watch] = _Pulse(watch)
    pulse = _pulses[watch]
    pulse.part = part
    pulse.beat()
    try:
        yield
    finally:
        pulse.part = ""


def _answer() -> None:
    """What a node is asked to do."""


def _lives(key: bytes) -> bool:
    """Whether Ray has that worker process, or had when its node was lost: one that died beats no more either."""
    return key.decode().rpartition(":")[2] in ray._private.state.workers()  # noqa: SLF001


def _get(key: bytes) -> bytes:
    return internal_kv._internal_kv_get(key, namespace=NAMESPACE) or b""  # noqa: SLF001


def _put(key: bytes, value: bytes) -> None:
    internal_kv._internal_kv_put(key, value, namespace=NAMESPACE)  # noqa: SLF001


def _delete(key: bytes) -> None:
    internal_kv._internal_kv_del(key, namespace=NAMESPACE)  # noqa: SLF001


def _list(prefix: bytes) -> list[bytes]:
    keys: list[bytes] = internal_kv._internal_kv_list(prefix, namespace=NAMESPACE)  # noqa: SLF001
    return keys
