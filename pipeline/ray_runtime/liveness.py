"""The driver's watch over its workers: one that is stopped (SIGSTOP) or hangs is reported and killed within a minute.

Once such a process is dead, Ray replaces it as it replaces every dead worker: prepare, training and evaluation need no
machinery of their own. A node that is lost is left to Ray, which reports its workers as dead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Self

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from pipeline.ray_runtime.heartbeat import HEARTBEAT_EVERY_S, PREFIX, Heartbeat, read_heartbeat, read_heartbeats
from pipeline.ray_runtime.internals import kv_delete, kv_delete_prefix, kv_put

LOOK_EVERY_S = 2.0
SILENT_S = float(os.environ.get("AST_SILENT_WORKER_S", "30"))
"""Time without a heartbeat after which a worker is taken for stopped: a thread that only writes a key is late by less
on a busy machine. The worker's node confirms it before it kills the process; all in all, that is under a minute."""
CONFIRM_S = HEARTBEAT_EVERY_S + 2.0
"""Time that a silent worker has, once its node has answered, to send a heartbeat after all."""
START_S = 20.0
"""Time that all workers have to send a first heartbeat; a start that takes longer has its nodes looked at."""
NODE_LOOK_EVERY_S = 10.0
"""Time between two looks at the nodes: a process that is stopped at both is killed."""
NODE_ANSWER_S = 5.0
ALIVE, KILLED, GONE = "alive", "killed", "gone"


class LivenessWatch:
    """A thread of the driver that watches the heartbeats of a stage's workers, while this context is open.

    Args:
        stage: what the workers do, such as "prepare"; with no colon at its end.
        workers: processes that are to send heartbeats at the same time. As long as fewer do so, some may have been
            stopped before their first heartbeat, and the nodes are looked at.
    """

    def __init__(self, stage: str, workers: int) -> None:
        self.name = f"{stage}:{uuid.uuid4().hex}"
        """Name of this watch, which the workers' heartbeats need."""
        self.processes: dict[str, str] = {}
        """Process and node by what a worker does, such as "rank 0"."""
        self._workers = workers
        self._heard: dict[bytes, tuple[Heartbeat, float]] = {}
        self._asked: dict[bytes, ray.ObjectRef[str]] = {}
        self._stopped: dict[str, set[int]] = {}
        self._looked_s = time.monotonic()
        self._look_at_nodes_s = self._looked_s + START_S
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="liveness-watch", daemon=True)

    def __enter__(self) -> Self:
        """Start to watch."""
        kv_put(f"{PREFIX}{self.name}".encode(), b"watched")
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop to watch; the workers then stop sending heartbeats."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(RayError):
            self._remember(read_heartbeats(self.name))
            kv_delete_prefix(f"{PREFIX}{self.name}".encode())

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self._look(time.monotonic())
            except RayError:  # the head is away, and with it all heartbeats
                self._forget_all()

    def _forget_all(self) -> None:
        self._heard.clear()
        self._asked.clear()

    def _remember(self, heartbeats: dict[bytes, Heartbeat]) -> None:
        self.processes |= {each.task: each.describe_process() for each in heartbeats.values() if each.task}

    def _look(self, now_s: float) -> None:
        if now_s - self._looked_s > SILENT_S / 2:
            self._forget_all()  # this process itself was stopped, or the head was away
        self._looked_s = now_s
        heartbeats = read_heartbeats(self.name)
        self._remember(heartbeats)
        for key, heartbeat in heartbeats.items():
            last, since_s = self._heard.get(key, (None, now_s))
            if last is None or heartbeat.count != last.count:
                self._heard[key] = (heartbeat, now_s)
                self._asked.pop(key, None)
            elif now_s - since_s > SILENT_S:
                self._end_silent(key, heartbeat, now_s - since_s)
        if len(heartbeats) >= self._workers:
            self._stopped, self._look_at_nodes_s = {}, now_s + START_S
        elif now_s >= self._look_at_nodes_s:
            self._end_stopped()
            self._look_at_nodes_s = time.monotonic() + NODE_LOOK_EVERY_S

    def _end_silent(self, key: bytes, heartbeat: Heartbeat, silent_s: float) -> None:
        """Let the node of a silent worker kill it. A node that does not answer is asked once, and Ray's to notice."""
        if key not in self._asked:
            job = ray.get_runtime_context().get_job_id()
            words = (key, heartbeat.count, heartbeat.process, job)
            self._asked[key] = _on_node(heartbeat.node_id, end_silent_process, *words)
        if not ray.wait([self._asked[key]], timeout=0)[0]:
            return
        fate, answer = GONE, self._asked.pop(key)
        with contextlib.suppress(RayError):  # the node is lost, and with it the worker
            fate = ray.get(answer)
        if fate == KILLED:
            name = f"Worker {heartbeat.task}" if heartbeat.task else "A worker"
            _report(
                f"{name} ({heartbeat.describe_process()}) has sent no heartbeat for {silent_s:.0f} s: it is stopped or "
                "hangs. It is killed, and another worker replaces it."
            )
        if fate != ALIVE:
            kv_delete(key)
            self._heard.pop(key, None)

    def _end_stopped(self) -> None:
        """Kill processes that were stopped before their first heartbeat, on any node."""
        job = ray.get_runtime_context().get_job_id()
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        answers = {node: _on_node(node, end_stopped_processes, job, self._stopped.get(node, set())) for node in names}
        ready, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_ANSWER_S)
        self._stopped = {}
        for node, answer in answers.items():
            killed: set[int] = set()
            if answer in ready:
                with contextlib.suppress(RayError):
                    self._stopped[node], killed = ray.get(answer)
            for process in sorted(killed):
                _report(
                    f"A worker (process {process} on {names[node]}) was stopped before its first heartbeat. It is "
                    "killed, and another worker replaces it."
                )


def _report(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False)


def _on_node(node_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function on a node next to its other work; return the reference to the result."""
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(*arguments)


def end_silent_process(key: bytes, count: int, process: int, job: str) -> str:
    """Kill a worker process of this node, unless it sends a heartbeat after all.

    Args:
        key: key of its heartbeats.
        count: counter of its last known heartbeat.
        process: id of the process.
        job: id of the Ray job whose worker it is.

    Returns:
        `ALIVE`, `KILLED`, or `GONE` if this node has no such process.
    """
    time.sleep(CONFIRM_S)
    heartbeat = read_heartbeat(key)
    if heartbeat is None or heartbeat.count != count:
        return ALIVE
    for worker in _workers_of_node(job):
        if worker.pid == process:
            os.kill(process, signal.SIGKILL)
            return KILLED
    return GONE


def end_stopped_processes(job: str, known: set[int]) -> tuple[set[int], set[int]]:
    """Kill worker processes of this node that are stopped now and were stopped before.

    Args:
        job: id of the Ray job whose workers are meant.
        known: processes that were stopped at the last look.

    Returns:
        Processes that are stopped and were not known, and processes that were killed.
    """
    stopped: set[int] = set()
    for worker in _workers_of_node(job):
        with contextlib.suppress(psutil.Error):
            if worker.status() == psutil.STATUS_STOPPED:
                stopped.add(worker.pid)
    for process in stopped & known:
        os.kill(process, signal.SIGKILL)
    return stopped - known, stopped & known


def _workers_of_node(job: str) -> list[psutil.Process]:
    """Return the worker processes of a Ray job on the node on which this runs."""
    raylet = psutil.Process().parent()
    workers = []
    for process in raylet.children() if raylet else []:
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_JOB_ID") == job:
                workers.append(process)
    return workers
