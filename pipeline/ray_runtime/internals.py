"""Private names of Ray: every use is a function here or in `train_internals`, so that a new Ray breaks these two only.

`tests/pipeline/ray_runtime/test_internals.py` lists the names and says which of them a release broke. `pyproject.toml`
keeps Ray below the next minor release until that test has passed on it. Ray Train's names are imported late: workers
that train nothing import this module, too.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node
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


@dataclass(frozen=True)
class AutoscalerReport:
    """The newest report of a cluster's autoscaler."""

    update: float
    """Number or time of the report; the next report has another one."""
    starting: tuple[str, ...]
    """Groups whose nodes are being started, or could not be started just now."""
    fixed_size: bool
    """Whether the cluster has no autoscaler: Ray's monitor then reports in its place."""


def autoscaler_report() -> AutoscalerReport | None:
    """Return the newest report of the cluster's autoscaler; None if nothing was reported yet.

    Ray has two autoscalers. The first writes its report as JSON to the key-value store of Ray's head, the second keeps
    it in the head itself. Neither reports how many nodes it may start.
    """
    from ray.autoscaler._private.util import format_readonly_node_type  # noqa: PLC0415
    from ray.autoscaler.v2.utils import is_autoscaler_v2  # noqa: PLC0415

    if is_autoscaler_v2(fetch_from_server=True):
        return _second_autoscaler_report()
    status = json.loads(internal_kv._internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS) or "{}")
    report = status.get("autoscaler_report")
    if not report or not report["active_nodes"]:
        return None
    records = report["node_availability_summary"]["node_availabilities"]
    failed = {group for group, record in records.items() if not record["is_available"]}
    pending = {group for _, group, _ in report["pending_nodes"]} | set(report["pending_launches"])
    mirrored = {format_readonly_node_type(node["NodeID"]) for node in ray.nodes()}
    return AutoscalerReport(status["time"], tuple(sorted(pending | failed)), set(report["active_nodes"]) <= mirrored)


def _second_autoscaler_report() -> AutoscalerReport | None:
    from ray.core.generated import autoscaler_pb2  # noqa: PLC0415

    reply = autoscaler_pb2.GetClusterStatusReply.FromString(  # type: ignore[attr-defined]
        internal_kv.internal_kv_get_gcs_client().get_cluster_status()
    )
    scaling, nodes = reply.autoscaling_state, reply.cluster_resource_state.node_states
    if not scaling.autoscaler_state_version:
        return None
    requests = [*scaling.pending_instance_requests, *scaling.pending_instances, *scaling.failed_instance_requests]
    groups = {request.ray_node_type_name for request in requests}
    fixed_size = not any(node.ray_node_type_name for node in nodes)
    return AutoscalerReport(scaling.autoscaler_state_version, tuple(sorted(groups)), fixed_size)


def reported_maximum(name: str) -> int:
    """Return how much of a resource such as "GPU" the cluster may have at most; 0 if Ray does not say."""
    return (state.get_max_resources_from_cluster_config() or {}).get(name, 0)


def started_here() -> bool:
    """Return whether this process started the Ray that it is connected to, which has no autoscaler."""
    return bool(getattr(ray._private.worker.global_worker.node, "head", False))


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
def without_idle_processes() -> Iterator[None]:
    """Make a Ray that starts inside start neither its autoscaler nor the dashboard's server.

    A Ray on one machine has no use for them: together they take three seconds of a processor. Without a dashboard the
    server only reports how Ray is used.
    """

    def start_no_server(node: Node, **_: object) -> None:
        node._webui_url = ""

    replaced: dict[str, Any] = {"start_monitor": lambda _: None, "start_api_server": start_no_server}
    known = {name: getattr(Node, name) for name in replaced}
    for name, method in replaced.items():
        setattr(Node, name, method)
    try:
        yield
    finally:
        for name, method in known.items():
            setattr(Node, name, method)


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
