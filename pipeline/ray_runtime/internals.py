"""Private names of Ray: every use is a function here or in `train_internals`, so that a new Ray breaks these two only.

`tests/pipeline/ray_runtime/test_internals.py` lists the names and says which of them a release broke. `pyproject.toml`
keeps Ray below the next minor release until that test has passed on it. Ray Train's names are imported late: workers
that train nothing import this module, too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import ray
from ray._private import ray_constants
from ray._private.state import state
from ray._raylet import PlacementGroupID
from ray.experimental import internal_kv
from ray.util.placement_group import PlacementGroup

NAMESPACE = b"ast-pipeline"
"""Namespace of this project's keys in the key-value store of Ray's head."""
LOCAL = b"local"
"""Key that marks a Ray that a stage started on its machine, for itself."""


def kv_get(key: bytes) -> bytes:
    """Return the value of a key in the store of Ray's head; empty if the key does not exist."""
    return internal_kv._internal_kv_get(key, namespace=NAMESPACE) or b""


def kv_put(key: bytes, value: bytes) -> None:
    """Write the value of a key in the store of Ray's head."""
    internal_kv._internal_kv_put(key, value, namespace=NAMESPACE)


def kv_delete(key: bytes) -> None:
    """Delete a key from the store of Ray's head; a key that does not exist is no error."""
    internal_kv._internal_kv_del(key, namespace=NAMESPACE)


def kv_delete_prefix(prefix: bytes) -> None:
    """Delete all keys that begin with a prefix from the store of Ray's head."""
    internal_kv._internal_kv_del(prefix, del_by_prefix=True, namespace=NAMESPACE)


def kv_list(prefix: bytes) -> list[bytes]:
    """Return the keys in the store of Ray's head that begin with a prefix."""
    keys: list[bytes] = internal_kv._internal_kv_list(prefix, namespace=NAMESPACE)
    return keys


def mark_local() -> None:
    """Mark this Ray as one that a stage started on its machine, for itself."""
    kv_put(LOCAL, b"yes")


def is_local() -> bool:
    """Return whether a stage started this Ray on its machine, for itself."""
    return kv_get(LOCAL) != b""


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that Ray drains; Ray Train's own preemption watcher asks the same."""
    return set(state.get_draining_nodes())


def placement_group_of(name: str) -> PlacementGroup:
    """Return the placement group with an id in hexadecimal, as `ray.util.placement_group_table` names it."""
    return PlacementGroup(PlacementGroupID.from_hex(name))


def spill_folder() -> str:
    """Return the folder to which this node's object store spills; empty if Ray does not say."""
    return getattr(ray._private.worker.global_worker.node, "_fallback_directory", None) or ""


@contextlib.contextmanager
def bind_to_loopback() -> Iterator[None]:
    """Make a Ray that starts inside bind to 127.0.0.1, so that no one on the network can run code through its ports.

    Ray reads this switch from the environment when it is imported, before the settings say whether to join a cluster.
    Without the switch, Ray replaces an address of 127.0.0.1 by the network's.
    """
    known, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known


@contextlib.contextmanager
def start_processes_with(python: str) -> Iterator[None]:
    """Make a Ray that starts inside run its processes, and later its workers, with this Python.

    Ray has no setting for it: it takes `sys.executable` when it starts.
    """
    known, sys.executable = sys.executable, python
    try:
        yield
    finally:
        sys.executable = known


def propagate_to_train_workers(variable: str) -> None:
    """Make Ray Train hand an environment variable of the driver to its controller and workers."""
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE  # noqa: PLC0415

    ENV_VARS_TO_PROPAGATE.add(variable)


def died_or_silent(error: BaseException) -> str:
    """Return "died" or "does not answer" for Ray Train's errors of a lost worker; empty for any other error."""
    from ray.train.v2._internal import exceptions  # noqa: PLC0415

    if isinstance(error, exceptions.WorkerHealthCheckFailedError):
        return "died"
    return "does not answer" if isinstance(error, exceptions.WorkerHealthCheckTimeoutError) else ""


def raised_in_worker(error: BaseException) -> BaseException | None:
    """Return the error that a rank raised and that Ray Train wrapped; None if this error is no such wrapper."""
    found: BaseException | None = getattr(error, "_base_exc", None)
    return found
