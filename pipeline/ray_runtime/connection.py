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
from ray._private import ray_constants
from ray.exceptions import OutOfDiskError

from ast_core.errors import NoRoomError, UserError
from pipeline.cli import sigterm

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "lo"
"""Linux's own network interface."""
STARTS = 4
"""Times that a local Ray is started: on a busy machine it may miss the 30 s that it gives itself."""


@contextlib.contextmanager
def connect(address: str, workers: int = 0) -> Iterator[None]:
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
        with sigterm.keep_sigterm_handler():
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
        raise spill_disk_error() from error


def spill_disk_error() -> NoRoomError:
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
