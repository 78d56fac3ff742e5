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
from ray.exceptions import OutOfDiskError

from ast_core.errors import NoRoomError, UserError
from pipeline.cli import sigterm
from pipeline.cli.gpu_choice import Gpus
from pipeline.ray_runtime import cluster_size, internals
from pipeline.ray_runtime.local_paths import LocalPaths, open_local_paths

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "lo"
"""Linux's own network interface."""
NO_DASHBOARD = "http://127.0.0.1:9"
"""Address at which nothing answers. A local Ray has no dashboard; without this address, Ray Train's placement group
cleaner looks for one, and prints a traceback if the machine runs several Rays."""
STARTS = 4
"""Tries to start a local Ray, which allows itself 30 s: too few on a busy machine."""


@contextlib.contextmanager
def connect(address: str, workers: int = 0, gpus: Gpus = "auto") -> Iterator[None]:
    """Connect to Ray for one stage. A connection that exists (a job's, a test's, `run`'s) is used and stays open.

    Args:
        address: value of `--address`; RAY_ADDRESS if empty; a local cluster if neither is set.
        workers: processes that must fit at once; a local cluster offers at least so many CPU slots.
        gpus: value of `--gpus`.

    Raises:
        UserError: the named cluster cannot be reached, or `gpus` is "yes" and the cluster can never have a GPU.
        NoRoomError: Ray's object store is full, and so is the disk to which it spills.
    """
    if ray.is_initialized():
        with _explain_full_disks():
            cluster_size.require_gpus(gpus)
            yield
        return
    target = address or os.environ.get("RAY_ADDRESS", "")
    with contextlib.ExitStack() as until_ray_stopped:
        try:
            with sigterm.keep_sigterm_handler():
                if target:
                    ray.init(address=target, logging_level=logging.WARNING)
                else:
                    paths = until_ray_stopped.enter_context(open_local_paths(str(ROOT)))
                    _start_here(max(os.cpu_count() or 1, workers), paths)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = target or "this machine"
            raise UserError(f"Ray at {where} cannot be reached: {error}. Check --address.") from error
        try:
            with _explain_full_disks():
                cluster_size.require_gpus(gpus)
                yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _explain_full_disks() -> Iterator[None]:
    try:
        yield
    except OutOfDiskError as error:
        raise spill_disk_error() from error


def spill_disk_error() -> NoRoomError:
    """Return the error to raise for Ray's `OutOfDiskError`, which does not say which disk is full."""
    folder = internals.spill_folder() or "a folder of its nodes"
    free = f"{shutil.disk_usage(folder).free} bytes are free" if Path(folder).is_dir() else "not on this machine"
    return NoRoomError(
        f"Ray's object store is full, and so is the disk that it spills to: {folder} ({free}). Free space, or end the "
        "programs that hold objects in this cluster, and run the same command again: what was committed stays."
    )


def _start_here(cores: int, paths: LocalPaths) -> None:
    """Start a Ray on this machine; UserError if the machine is too busy."""
    # Worker processes import these packages from the same folder as the driver.
    environment = {"PYTHONPATH": os.pathsep.join([paths.checkout, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    environment["RAY_API_SERVER_ADDRESS"] = NO_DASHBOARD
    environment |= {"GLOO_SOCKET_IFNAME": LOOPBACK} if LOOPBACK in psutil.net_if_addrs() else {}
    for _ in range(STARTS):
        try:
            with internals.bind_to_loopback(), internals.start_processes_with(paths.python):
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    _temp_dir=paths.temporary,
                    runtime_env={
                        "env_vars": environment,
                        "worker_process_setup_hook": "pipeline.ray_runtime.worker_setup.quiet_ray_logs",
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
