"""The only `ray.init`: join a cluster if one is named, else start one on this machine and stop it at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
import ray.util
import torch
from ray._private import ray_constants
from ray._raylet import PlacementGroupID
from ray.exceptions import OutOfDiskError
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.util.placement_group import PlacementGroup

from ast_core.errors import NoRoomError, UserError
from ast_core.storage.atomic_files import remove
from pipeline.cli import sigterm

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # ours knows the driver's SIGTERM too
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # with Ray's 2 s, every end and every loss is noticed so much later
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # Ray's 600 s is long for a worker that is stopped
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S: "5",  # Ray's 30 s are waited for a stopped one, too, which is then killed
}
"""How Ray Train watches workers, unless the environment of the training's driver says otherwise."""
LOOPBACK = "lo"
"""Linux's own network interface."""
STARTS = 4
"""Times that a local Ray is started: on a busy machine it may miss the 30 s that it gives itself."""


@contextlib.contextmanager
def connected(address: str, workers: int = 0) -> Iterator[None]:
    """A connection to Ray for one stage; one that is there already (a job's, a test's, `run`'s) is used and left open.

    Args:
        address: what `--address` gave; RAY_ADDRESS if empty; a local cluster if neither is set.
        workers: processes that must fit at once; a local cluster offers at least so many CPU slots.

    Raises:
        UserError: the named cluster cannot be reached.
        NoRoomError: its object store is full, and the disk that it spills to.
    """
    if ray.is_initialized():
        with _told_of_full_disks():
            yield
        return
    target = address or os.environ.get("RAY_ADDRESS", "")
    try:
        with sigterm.kept():
            if target:
                ray.init(address=target, logging_level=logging.WARNING)
            else:
                _start_here(max(os.cpu_count() or 1, workers))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"Ray at {target or 'this machine'} cannot be reached: {error}. Check --address.") from error
    try:
        with _told_of_full_disks():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _told_of_full_disks() -> Iterator[None]:
    try:
        yield
    except OutOfDiskError as error:
        raise no_room_to_spill() from error


def no_room_to_spill() -> NoRoomError:
    """What Ray's `OutOfDiskError` means to whoever runs it; Ray does not say which disk."""
    node = ray._private.worker.global_worker.node  # noqa: SLF001
    folder = getattr(node, "_fallback_directory", None) or "a folder of its nodes"
    free = f"{shutil.disk_usage(folder).free} bytes are free" if Path(folder).is_dir() else "not on this machine"
    return NoRoomError(
        f"Ray's object store is full, and so is the disk that it spills to: {folder} ({free}). Free space, or end what "
        "holds objects in this cluster, and run the same command again: what was committed stays."
    )


def _start_here(cores: int) -> None:
    """Start a Ray on this machine; UserError if it is too busy for that."""
    # Worker processes import these packages from wherever the driver did.
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    environment |= {"GLOO_SOCKET_IFNAME": LOOPBACK} if LOOPBACK in psutil.net_if_addrs() else {}
    for _ in range(STARTS):
        try:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    runtime_env={
                        "env_vars": environment,
                        "worker_process_setup_hook": "pipeline.ray_runtime.worker_setup.settle",
                    },
                )
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray has no class of its own for it
                raise
            ray.shutdown()
        else:
            return
    raise UserError(
        f"Ray did not start on this machine in {STARTS} tries: it is too busy. Run the command again later."
    )


def settle_train() -> None:
    """Give Ray Train the settings of `TRAIN`, which its controller and workers take from this process."""
    for name, value in TRAIN.items():
        os.environ.setdefault(name, value)
    ENV_VARS_TO_PROPAGATE.add(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)  # the controller reads it, and gets no other way


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Inside, Ray takes 127.0.0.1 for this machine's address: whoever reached its ports could run code here.

    It has that as a switch for systems whose firewalls ask, read from the environment when it is imported; before the
    settings say whether a cluster is to be joined. An address of 127.0.0.1 it would replace by the network's.
    """
    known, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known


def release(held: Path) -> None:
    """Give back what workers held whose controller was killed: no cleaner of Ray's, which needs a dashboard, does it.

    Args:
        held: where rank 0 noted its placement group; of a group that is gone, or of another cluster, nothing is done.
    """
    if not held.is_file():
        return
    name = held.read_text(encoding="utf-8")
    state = ray.util.placement_group_table().get(name, {}).get("state", "REMOVED")
    if state != "REMOVED":
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
    remove(held)


def release_own() -> None:
    """Give back what worker groups of this driver hold that could not be formed: Ray forgets them, nobody else knows.

    Such a group would keep the CPUs from its successor for ever. Inside a trial nothing is done: others run beside it.
    """
    if ray.util.get_current_placement_group() is not None:
        return
    job = ray.get_runtime_context().get_job_id()  # the end of its groups' names
    for name, group in ray.util.placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def worker_count(asked: int, batch_size: int = 0) -> int:
    """Workers of a stage: what was asked for, else one a GPU of the cluster, else one a CPU.

    Args:
        asked: 0 for as many as there is room for.
        batch_size: of a training, whose workers share it evenly: the published 12 keeps 6 of 8 GPUs busy.
    """
    if asked > 0:
        return asked
    resources = ray.cluster_resources()
    most = max(1, int(resources.get("GPU", 0) or resources.get("CPU", 1)))
    return next(workers for workers in range(most, 0, -1) if batch_size % workers == 0)


def uses_gpu() -> bool:
    """Whether the cluster has a GPU that this build of torch could use."""
    return ray.cluster_resources().get("GPU", 0) > 0 and torch.version.cuda is not None
