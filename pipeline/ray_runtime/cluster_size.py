"""How many workers a stage starts, whether they use GPUs, and the wait for nodes that an autoscaler starts."""

from __future__ import annotations

import time

import ray
import torch
from rich.console import Console

from ast_core.errors import require
from pipeline.cli.gpu_choice import Gpus
from pipeline.ray_runtime import internals

AUTOSCALER_START_S = 15.0
"""Time after which the autoscaler of a cluster that was just started has reported once."""
SAY_FIRST_S = 5.0
SAY_EVERY_S = 30.0
"""Time between two lines that say what a stage waits for."""
IDLE_S = 120.0
"""Time after which an autoscaler that starts no node for a request never will. It is longer than the two minutes that a
node which leaves counts towards the maximum of its group."""


def worker_count(asked: int, gpus: Gpus, batch_size: int = 0) -> int:
    """Return the workers of a stage: as many as were asked for, else one a GPU of the cluster, else one a CPU.

    Args:
        asked: 0 for as many as there is room for.
        gpus: value of `--gpus`.
        batch_size: of a training, whose workers share it evenly: the published 12 keeps 6 of 8 GPUs busy.

    Raises:
        UserError: no number was asked for, and the nodes are still to be started by an autoscaler that does not report
            how many it may start.
    """
    if asked > 0:
        return asked
    most = room(gpus)
    require(
        most > 0 or gpus != "yes",
        "--gpus yes needs --workers on this cluster: no node with a GPU is alive yet, and Ray does not report how many "
        "its autoscaler may start. Set --workers to the number of GPUs of a training.",
    )
    return next(workers for workers in range(max(1, most), 0, -1) if batch_size % workers == 0)


def workers_that_fit(asked: int, gpus: Gpus, most: int) -> int:
    """Return how many workers to start: as many as were asked for and have or may get room, but at most `most`."""
    wanted = worker_count(asked, gpus)
    fit = wanted if may_grow(gpus) else room(gpus)
    return max(1, min(wanted, fit, most))


def uses_gpu(gpus: Gpus) -> bool:
    """Return whether each worker asks Ray for a GPU; with `auto` only if a node that is alive has one."""
    if gpus == "auto":
        return _alive("GPU") > 0 and torch.version.cuda is not None
    return gpus == "yes"


def room(gpus: Gpus) -> int:
    """Return how many workers, each with a GPU or a CPU, fit at the same time.

    With `yes`, GPUs count that the cluster may start, if Ray reports them. As of Ray 2.60 managed clusters do
    (`ClusterConfig`). The open-source autoscalers, KubeRay's too, keep their maximum to themselves: then `may_grow`.
    """
    name = "GPU" if uses_gpu(gpus) else "CPU"
    return max(_alive(name), internals.reported_maximum(name) if gpus == "yes" else 0)


def may_grow(gpus: Gpus) -> bool:
    """Return whether an autoscaler may start more GPUs than `room` knows; to find out, ask Ray for one more."""
    if gpus != "yes" or internals.reported_maximum("GPU"):
        return False
    report = internals.autoscaler_report()
    return report is not None and not report.fixed_size


def _alive(name: str) -> int:
    """Return the number of CPUs or GPUs of the nodes that are alive."""
    return int(ray.cluster_resources().get(name, 0))


def require_gpus(gpus: Gpus, count: int = 1) -> None:
    """Raise UserError if `yes` asks for more GPUs than the cluster has, and no autoscaler could start them."""
    if gpus != "yes" or _alive("GPU") >= count:
        return
    alive, nodes = _alive("GPU"), sum(node["Alive"] for node in ray.nodes())
    where = "this machine has" if nodes == 1 else f"the {nodes} nodes of the Ray cluster have"
    asks = f"--gpus yes asks for {_gpus(count)}, but {where} {alive or 'none'}"
    maximum = internals.reported_maximum("GPU")
    require(
        maximum >= count or maximum == 0,
        f"{asks} and the autoscaler starts {maximum} at most. Set --workers to {maximum}.",
    )
    advice = f"Set --workers to {alive}" if alive else "Give --gpus no, or join a cluster with GPUs (--address)"
    require(maximum > 0 or _has_autoscaler(), f"{asks}, and no autoscaler could start a node with more. {advice}.")


def _has_autoscaler() -> bool:
    """Return whether an autoscaler starts nodes of this cluster; one that was just started is waited for."""
    deadline_s = time.monotonic() + (0 if internals.started_here() else AUTOSCALER_START_S)
    while (report := internals.autoscaler_report()) is None and time.monotonic() < deadline_s:
        time.sleep(0.5)
    return report is not None and not report.fixed_size


class GpuWait:
    """The wait of a stage for GPUs that it has asked Ray for; it says every half a minute what it waits for.

    Args:
        count: number of GPUs that the stage needs at the same time.

    Raises:
        UserError: the cluster has fewer GPUs, and no autoscaler could start them.
    """

    def __init__(self, count: int) -> None:
        require_gpus("yes", count)
        self._count = count
        self._started_s = time.monotonic()
        self._idle_since_s: float | None = None
        self._say_s = self._started_s + SAY_FIRST_S
        self._update = 0.0
        self._state = "the autoscaler has not answered yet"

    def look(self) -> None:
        """Look at the autoscaler; raise UserError if it starts no node that the stage needs."""
        now_s, alive, report = time.monotonic(), _alive("GPU"), internals.autoscaler_report()
        if alive >= self._count:
            self._idle_since_s, self._state = None, "other work uses them"
        elif report is not None and report.update != self._update:  # an autoscaler that is away cannot start nodes
            self._update = report.update
            if report.starting:
                self._idle_since_s, self._state = None, f"the autoscaler starts {', '.join(report.starting)}"
            else:
                self._state = "the autoscaler starts no node"
                self._idle_since_s = now_s if self._idle_since_s is None else self._idle_since_s
                self._require_start(now_s - self._idle_since_s, alive)
        if now_s >= self._say_s:
            self._say_s = now_s + SAY_EVERY_S
            Console(stderr=True, soft_wrap=True, highlight=False).print(
                f"Waiting for {_gpus(self._count)} since {now_s - self._started_s:.0f} s: the cluster has {alive}, "
                f"{self._state}.",
                markup=False,
            )

    def _require_start(self, idle_s: float, alive: int) -> None:
        require(
            idle_s < IDLE_S,
            f"--gpus yes asks for {_gpus(self._count)} at the same time, the cluster has {alive}, and the autoscaler "
            f"has started no node for {IDLE_S:.0f} s: no group of nodes has GPUs, or the groups are at their maximum. "
            "Raise the maximum of a group with GPUs, set a smaller --workers, or give --gpus no.",
        )


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"
