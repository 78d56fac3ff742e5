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
from collections.abc import Collection
from typing import Any, Self

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from pipeline.ray_runtime.heartbeat import HEARTBEAT_EVERY_S, PREFIX, Heartbeat, read_heartbeat, read_heartbeats
from pipeline.ray_runtime.internals import is_local, kv_delete, kv_delete_prefix, kv_put

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
        self._inspector_class = ray.remote(num_cpus=0)(NodeInspector)
        self._inspectors: dict[str, Any] = {}
        """Actors by node."""
        self._asked: dict[bytes, tuple[Heartbeat, ray.ObjectRef[str]]] = {}
        """Silent workers whose node was asked to kill them, by key."""
        self._looks: dict[str, ray.ObjectRef[list[str]]] = {}
        """Looks that have not ended yet, by node."""
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
        """Stop watching; the workers then stop sending heartbeats."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(RayError):
            self._report_silent()  # a stage may end less than a look after its last worker was replaced
            self._report_looks()
        self._inspectors.clear()  # which ends the actors
        with contextlib.suppress(RayError):
            self._remember(read_heartbeats(self.name))
            kv_delete_prefix(f"{PREFIX}{self.name}".encode())

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self._look(time.monotonic())
            except RayError:  # the head is away, and with it all heartbeats
                self._heard.clear()

    def _remember(self, heartbeats: dict[bytes, Heartbeat]) -> None:
        self.processes |= {each.task: each.describe_process() for each in heartbeats.values() if each.task}

    def _look(self, now_s: float) -> None:
        if now_s - self._looked_s > SILENT_S / 2:
            self._heard.clear()  # this process itself was stopped, or the head was away
        self._looked_s = now_s
        heartbeats = read_heartbeats(self.name)
        self._remember(heartbeats)
        for key, heartbeat in heartbeats.items():
            last, since_s = self._heard.get(key, (None, now_s))
            if last is None or heartbeat.count != last.count:
                self._heard[key] = (heartbeat, now_s)
            elif now_s - since_s > SILENT_S and key not in self._asked:
                inspector = self._inspector(heartbeat.node_id)
                self._asked[key] = heartbeat, inspector.kill_silent.remote(key, heartbeat.count, heartbeat.process)
        self._report_silent()
        self._report_looks()
        if len(heartbeats) >= self._workers:
            self._look_at_nodes_s = now_s + START_S
        elif now_s >= self._look_at_nodes_s:
            self._look_at_nodes_s = now_s + NODE_LOOK_EVERY_S
            for node in ray.nodes():
                if node["Alive"] and node["NodeID"] not in self._looks:  # a busy node may not have answered yet
                    heard = [one.process for one in heartbeats.values() if one.node_id == node["NodeID"]]
                    self._looks[node["NodeID"]] = self._inspector(node["NodeID"]).kill_stopped.remote(heard)

    def _report_silent(self) -> None:
        """Report silent workers that their nodes killed. A node that hangs does not answer, and is Ray's to notice."""
        for key, (heartbeat, answer) in list(self._asked.items()):
            if not ray.wait([answer], timeout=0)[0]:
                continue
            del self._asked[key]
            try:
                fate = ray.get(answer)
            except RayError:  # the node is lost, and with it the worker
                fate = GONE
                self._inspectors.pop(heartbeat.node_id, None)
            if fate == KILLED:
                name = f"Worker {heartbeat.task}" if heartbeat.task else "A worker"
                _report(
                    f"{name} ({heartbeat.describe_process()}) has sent no heartbeat for more than {SILENT_S:.0f} s: it "
                    "is stopped or hangs. It is killed, and another worker replaces it."
                )
            if fate != ALIVE:
                kv_delete(key)
                self._heard.pop(key, None)

    def _report_looks(self) -> None:
        for node, answer in list(self._looks.items()):
            if not ray.wait([answer], timeout=0)[0]:
                continue
            del self._looks[node]
            try:
                killed = ray.get(answer)
            except RayError:  # the node is lost
                self._inspectors.pop(node, None)
                continue
            for process in killed:
                _report(
                    f"A worker ({process}) was stopped before its first heartbeat. It is killed, and another worker "
                    "replaces it."
                )

    def _inspector(self, node_id: str) -> Any:
        """Return the actor that looks at a node for this watch; it lives on the node next to its other work."""
        if node_id not in self._inspectors:
            on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
            job = ray.get_runtime_context().get_job_id()
            actor = self._inspector_class.options(scheduling_strategy=on_node)
            self._inspectors[node_id] = actor.remote(job, NODE_LOOK_EVERY_S / 2)
        return self._inspectors[node_id]


def _report(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False)


class NodeInspector:
    """An actor that kills stopped worker processes of its node.

    It is an actor, not a task, since Ray would start a new process for each task: idle ones end after a second.

    Args:
        job: id of the Ray job whose workers are meant.
        stopped_s: time for which a process must have been stopped, as far as the looks show.
    """

    def __init__(self, job: str, stopped_s: float) -> None:
        self._job = job
        self._stopped_s = stopped_s
        self._stopped: dict[int, float] = {}
        """Time of the first look at which a process was stopped, by its id."""

    def kill_silent(self, key: bytes, count: int, process: int) -> str:
        """Kill a worker process, unless it sends a heartbeat after all.

        Args:
            key: key of its heartbeats.
            count: counter of its last known heartbeat.
            process: id of the process.

        Returns:
            `ALIVE`, `KILLED`, or `GONE` if this node has no such process.
        """
        time.sleep(CONFIRM_S)
        heartbeat = read_heartbeat(key)
        if heartbeat is None or heartbeat.count != count:
            return ALIVE
        if process not in {worker.pid for worker in self._workers(every_job=True)}:
            return GONE
        os.kill(process, signal.SIGKILL)
        return KILLED

    def kill_stopped(self, heard: Collection[int]) -> list[str]:
        """Kill worker processes that were stopped at an earlier look and still are; return their descriptions.

        Args:
            heard: processes that have sent heartbeats, which are left to `kill_silent`.
        """
        now_s, stopped, killed = time.monotonic(), {}, []
        for worker in self._workers(every_job=is_local()):
            with contextlib.suppress(psutil.Error):
                if worker.pid not in heard and worker.status() == psutil.STATUS_STOPPED:
                    stopped[worker.pid] = self._stopped.get(worker.pid, now_s)
        for process, since_s in list(stopped.items()):
            if now_s - since_s >= self._stopped_s:
                os.kill(process, signal.SIGKILL)
                del stopped[process]
                killed.append(f"process {process} on {os.uname().nodename}")
        self._stopped = stopped
        return killed

    def _workers(self, every_job: bool) -> list[psutil.Process]:
        """Return the worker processes on this node: those of every job, or those that Ray started for this job.

        The environment of a worker that Ray started before it knew the job does not name the job.
        """
        raylet = psutil.Process().parent()
        workers = []
        for process in raylet.children() if raylet else []:
            with contextlib.suppress(psutil.Error):
                if every_job or process.environ().get("RAY_JOB_ID") == self._job:
                    workers.append(process)
        return workers
