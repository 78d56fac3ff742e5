"""A worker that is stopped (SIGSTOP) while a training starts: Ray waits for it for ever, so it is looked for and ended.

Once all ranks have signed in, Ray Train's own health check sees to them. A machine that hangs is Ray's to notice, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from pipeline.ray_runtime import preemption

LOOK_AFTER_S = 20.0
"""A start that is over by then, as most are, costs nothing."""
LOOK_EVERY_S = 10.0
"""Stopped at two looks, a process is ended."""


@contextlib.contextmanager
def watched(folder: Path, workers: int) -> Iterator[None]:
    """While this is open, a process that is stopped before all ranks have begun is named on stderr and ended.

    Args:
        folder: of the member that is trained.
        workers: ranks.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, workers, over), name="start-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(folder: Path, workers: int, over: threading.Event) -> None:
    known: dict[str, set[int]] = {}
    wait_s = LOOK_AFTER_S
    while not over.wait(wait_s) and len(preemption.rank_processes(folder)) < workers:
        with contextlib.suppress(RayError):  # the head is away
            known = _look(known)
        wait_s = LOOK_EVERY_S


def _look(known: dict[str, set[int]]) -> dict[str, set[int]]:
    """Ask every node; `known` has the processes that were stopped at the last look, by node, and these are ended."""
    task, job = ray.remote(num_cpus=0, max_retries=0)(end_stopped), ray.get_runtime_context().get_job_id()
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    answers = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            job, known.get(node, set())
        )
        for node in nodes
    }
    ready, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=LOOK_EVERY_S)
    found: dict[str, set[int]] = {}
    for node, answer in answers.items():
        ended: set[int] = set()
        if answer in ready:  # a node that does not answer must not hide the others
            with contextlib.suppress(RayError):
                found[node], ended = ray.get(answer)
        for process in sorted(ended):
            Console(stderr=True, soft_wrap=True).print(
                f"A worker (process {process} on {nodes[node]}) is stopped, and the training cannot start without it. "
                "It is ended, and the workers start anew.",
                markup=False,
            )
    return found


def end_stopped(job: str, known: set[int]) -> tuple[set[int], set[int]]:
    """On a node: its processes of a Ray job that are stopped now, and those of them that were `known` and are ended."""
    raylet, stopped, ended = psutil.Process().parent(), set(), set()
    for process in raylet.children() if raylet else []:
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED and process.environ().get("RAY_JOB_ID") == job:
                stopped.add(process.pid)
                if process.pid in known:
                    os.kill(process.pid, signal.SIGKILL)
                    ended.add(process.pid)
    return stopped - ended, ended
