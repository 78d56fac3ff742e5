"""Code that one training worker runs: it trains the members that the driver's `WorkerGroup` hands over, one by one.

It is apart from `train` and imports late, because Ray's controller and workers all import this module: MLflow and the
command line would cost each of them ten seconds of start.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray.train
import ray.util
from ray import cloudpickle

from ast_core.config import Job
from ast_core.storage.object_store import ObjectStore
from pipeline.cli.gpu_choice import Gpus
from pipeline.cli.user_environment import complete_environment
from pipeline.ray_runtime.heartbeat import start_heartbeat
from pipeline.ray_runtime.internals import kv_get, kv_put

END = b"end"
"""The task after which the workers of a group end."""
LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class TrainRankConfig:
    """Settings of a training's workers, the same for every rank."""

    job: Job
    watch: str
    """Name of the driver's `LivenessWatch`."""
    placement_group_file: Path
    """File in which rank 0 notes the CPUs or GPUs that the group holds, for `release_placement_group`."""
    stores: tuple[ObjectStore, ...]
    """Stores of which the node's folders become working copies."""
    gpus: Gpus
    """Value of `--gpus`."""
    generation: str
    """Generation as which the ranks write to the member's folder, see `ast_core.storage.writer_fence`."""


def task_key(group: str, number: int | None) -> bytes:
    """Return the key of a group's training, counted from 1; without a number, the prefix of all the group's keys."""
    return f"group:{group}:{'' if number is None else f'task:{number}'}".encode()


def finished_key(group: str, number: int) -> bytes:
    """Return the key that rank 0 writes once it has finished a group's training."""
    return f"group:{group}:finished:{number}".encode()


def serve_trainings(group: str) -> None:
    """Train one member after the other as one rank of Ray Train's process group, until the driver says `END`."""
    import ast_core.training.trainer  # noqa: F401, PLC0415  # while the driver still opens MLflow's store

    for number in itertools.count(1):
        while not (task := kv_get(task_key(group, number))):
            time.sleep(LOOK_EVERY_S)
        if task == END:
            return
        train_rank(cloudpickle.loads(task))
        gc.collect()  # the model before is gone before the next one is made
        if ray.train.get_context().get_world_rank() == 0:
            kv_put(finished_key(group, number), b"finished")


def train_rank(config: TrainRankConfig) -> None:
    """Train one member as one rank; rank 0 also watches whether the training must stop."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    start_heartbeat(config.watch, f"rank {rank}")
    complete_environment()  # a node of a cluster does not have the driver's environment

    import torch  # noqa: PLC0415
    from ray.train.torch import get_device  # noqa: PLC0415

    from ast_core.storage import writer_fence  # noqa: PLC0415
    from ast_core.storage.atomic_files import atomic_write  # noqa: PLC0415
    from ast_core.training.trainer import fit  # noqa: PLC0415
    from pipeline.ray_runtime import preemption  # noqa: PLC0415
    from pipeline.reporting import log_lines, prometheus  # noqa: PLC0415
    from pipeline.run_folder import sync  # noqa: PLC0415
    from pipeline.scoring.device import choose_device  # noqa: PLC0415

    sync.attach_stores(config.stores)
    group = ray.util.get_current_placement_group()
    job = config.job
    writer_fence.enter_generation(job.folder, config.generation)
    labels = prometheus.member_labels(job) | {"rank": str(rank)}
    log_lines.label_log_lines(labels)
    if rank == 0 and group is not None:
        with atomic_write(config.placement_group_file) as temporary:
            temporary.write_text(group.id.hex(), encoding="utf-8")
    sync.download_rank_inputs(job)
    device = get_device() if choose_device(config.gpus) == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        # One thread a rank: two threads on one core lose more in waiting for each other than they gain.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    with contextlib.ExitStack() as until_trained:
        watch = None
        if rank == 0 and group is not None:
            watch = until_trained.enter_context(preemption.PreemptionWatch(job.folder, group))
        callback = prometheus.PrometheusCallback(labels, watch)
        fit(job, rank, context.get_world_size(), device, callback)
