"""The only `ray.init`: join a cluster if one is named, else start one on this machine and stop it at the end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import shutil
import threading
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
    if _early is not None:
        with sigterm.keep_sigterm_handler():
            _early.wait()
    with contextlib.ExitStack() as until_stopped:
        if not ray.is_initialized():
            with sigterm.keep_sigterm_handler():
                _start(_address(address), workers, until_stopped)
        with _explain_full_disks():
            cluster_size.require_gpus(gpus)
            yield


def starts_local(address: str) -> bool:
    """Return whether `connect` would start a local cluster.

    Args:
        address: value of `--address`.
    """
    return not _address(address) and not ray.is_initialized()


@contextlib.contextmanager
def start_early(address: str, workers: int) -> Iterator[None]:
    """Start a local Ray in a thread while this context imports and begins its stage; it ends with the context.

    Ray's processes take seconds to start, and so does the import of torch and MLflow. `connect` waits for this Ray.
    Where a cluster is named, this does nothing.
    """
    global _early  # noqa: PLW0603
    if not starts_local(address):
        yield
        return
    _early = early = _EarlyStart(workers)
    try:
        yield
    finally:
        _early = None
        early.stop()


class _EarlyStart:
    """A local Ray that a thread starts and stops.

    The thread lives as long as Ray: the kernel kills Ray's processes with the thread that started them.
    """

    def __init__(self, workers: int) -> None:
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[workers], name="local-ray", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until Ray has started; errors as `connect`."""
        self._started.result()

    def stop(self) -> None:
        """Stop Ray."""
        self._over.set()
        self._thread.join()

    def _run(self, workers: int) -> None:
        with contextlib.ExitStack() as until_stopped:
            try:
                with sigterm.keep_sigterm_action():
                    _start("", workers, until_stopped, self._over)
            except BaseException as error:  # noqa: BLE001  # raised again by `wait`
                self._started.set_exception(error)
                return
            self._started.set_result(None)
            self._over.wait()


_early: _EarlyStart | None = None
"""The Ray that `start_early` starts for this process."""


def _address(address: str) -> str:
    """Return the address of the cluster to join; empty to start a local one."""
    return address or os.environ.get("RAY_ADDRESS", "")


def _start(target: str, workers: int, until_stopped: contextlib.ExitStack, over: threading.Event | None = None) -> None:
    """Join the cluster at `target`, or start a local one; `until_stopped` gets what stops it.

    Once `over` is set, no one needs Ray any more, and it is not tried again to start it.
    """
    try:
        if target:
            ray.init(address=target, logging_level=logging.WARNING)
        else:
            paths = until_stopped.enter_context(open_local_paths(str(ROOT)))
            _start_here(max(os.cpu_count() or 1, workers), paths, over)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = target or "this machine"
        raise UserError(f"Ray at {where} cannot be reached: {error}. Check --address.") from error
    until_stopped.callback(ray.shutdown)


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


def _start_here(cores: int, paths: LocalPaths, over: threading.Event | None) -> None:
    """Start a Ray on this machine; UserError if the machine is too busy.

    Its processes inherit their environment from this one. With an environment of Ray's (`runtime_env`) each worker
    would be started twice, and no worker could do the work of another stage.
    """
    # Worker processes import these packages from the same folder as the driver.
    environment = {"PYTHONPATH": os.pathsep.join([paths.checkout, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    environment |= {"GLOO_SOCKET_IFNAME": LOOPBACK} if LOOPBACK in psutil.net_if_addrs() else {}
    for _ in range(STARTS):
        if over is not None and over.is_set():
            break
        try:
            with (
                internals.bind_to_loopback(),
                internals.without_idle_processes(),
                internals.start_processes_with(paths.python),
                _set_environment(environment),
            ):
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    _temp_dir=paths.temporary,
                )
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray has no class of its own for it
                raise
            ray.shutdown()
        else:
            internals.mark_local()
            return
    raise UserError(
        f"Ray did not start on this machine in {STARTS} tries: it is too busy. Run the command again later."
    )


@contextlib.contextmanager
def _set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
