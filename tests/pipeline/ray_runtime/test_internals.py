"""Private names of Ray are used in one file only, and exist in the Ray that is installed."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.ray_runtime import internals

ROOT = Path(__file__).resolve().parents[3]
ONLY = ROOT / "pipeline" / "ray_runtime" / "internals.py"
TRAIN = ONLY.with_name("train_internals.py")
SOURCES = sorted(
    path
    for package in ("ast_core", "pipeline", "tune")
    for path in (ROOT / package).rglob("*.py")
    if path not in {ONLY, TRAIN}
)
NAMES = [
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"),
    ("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS"),
    ("ray._private.node", "Node.start_api_server"),
    ("ray._private.node", "Node.start_monitor"),
    ("ray._private.node", "Node.webui_url"),
    ("ray._private.state", "state.get_draining_nodes"),
    ("ray._private.state", "state.get_max_resources_from_cluster_config"),
    ("ray._private.worker", "global_worker.node"),
    ("ray._raylet", "PlacementGroupID.from_hex"),
    ("ray.autoscaler._private.util", "format_readonly_node_type"),
    ("ray.autoscaler.v2.utils", "is_autoscaler_v2"),
    ("ray.core.generated.autoscaler_pb2", "GetClusterStatusReply.FromString"),
    ("ray.experimental.internal_kv", "_internal_kv_get"),
    ("ray.experimental.internal_kv", "_internal_kv_put"),
    ("ray.experimental.internal_kv", "_internal_kv_del"),
    ("ray.experimental.internal_kv", "_internal_kv_list"),
    ("ray.experimental.internal_kv", "internal_kv_get_gcs_client"),
    ("ray.train.v2._internal.callbacks", "DatasetsCallback"),
    ("ray.train.v2._internal.callbacks.placement_group_callback", "PlacementGroupCleanerCallback"),
    ("ray.train.v2._internal.constants", "DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE"),
    ("ray.train.v2._internal.constants", "ENV_VARS_TO_PROPAGATE"),
    ("ray.train.v2._internal.execution.controller", "TrainController.get_result"),
    ("ray.train.v2._internal.execution.scaling_policy", "FixedScalingPolicy._maybe_send_resource_request"),
    ("ray.train.v2._internal.execution.scaling_policy", "FixedScalingPolicy.after_controller_start"),
    ("ray.train.v2._internal.exceptions", "WorkerHealthCheckFailedError"),
    ("ray.train.v2._internal.exceptions", "WorkerHealthCheckTimeoutError"),
    ("ray.train.v2._internal.exceptions", "UserExceptionWithTraceback"),
    ("ray.train.v2.api.data_parallel_trainer", "DataParallelTrainer._create_default_callbacks"),
    ("ray.train.v2.api.data_parallel_trainer", "DataParallelTrainer._initialize_and_run_controller"),
]
"""Modules and names that `internals.py` and `train_internals.py` use."""


def is_private(name: str) -> bool:
    parts = name.split(".")
    private = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return parts[0] == "ray" and (private or name.startswith("ray.experimental.internal_kv"))


def private_names(tree: ast.AST) -> Iterator[str]:
    """Private Ray names that a module imports, or reaches through a name that it imported from Ray."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {one.asname or one.name.split(".")[0]: one.name if one.asname else one.name.split(".")[0]
                         for one in node.names}  # fmt: skip
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
            yield from (f"{node.module}.{one.name}" for one in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            yield f"{imported.get(first, first)}.{rest}"


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_other_file_uses_a_private_name_of_ray(path: Path) -> None:
    found = {name for name in private_names(ast.parse(path.read_text())) if is_private(name)}
    assert not found, f"{path} uses {found}: add a function to {ONLY.name} instead."


def test_the_check_finds_private_names_in_the_file_that_has_them() -> None:
    found = {name for name in private_names(ast.parse(ONLY.read_text())) if is_private(name)}
    for module in ("ray._private", "ray._raylet", "ray.experimental.internal_kv", "ray.train.v2._internal"):
        assert any(name.startswith(module) for name in found), module


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_each_private_name_exists(module: str, name: str) -> None:
    broken = f"Ray {ray.__version__} has no {module}.{name} any more: change its use in {ONLY}."
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.fail(broken)
    for part in name.split("."):
        assert hasattr(found, part), broken
        found = getattr(found, part)


def test_private_attributes_exist() -> None:
    from ray._private.node import Node  # noqa: PLC0415
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback  # noqa: PLC0415

    error = ValueError("in a rank")
    assert internals.raised_in_worker(UserExceptionWithTraceback(error, "")) is error, (
        f"Ray {ray.__version__} has no UserExceptionWithTraceback._base_exc any more: change {ONLY}."
    )
    assert "_fallback_directory" in Path(importlib.import_module(Node.__module__).__file__ or "").read_text(), (
        f"Ray {ray.__version__} has no Node._fallback_directory any more: change {ONLY}."
    )


@pytest.mark.usefixtures("ray_session")
def test_keys_are_written_listed_and_deleted() -> None:
    internals.kv_put(b"test:a", b"1")
    internals.kv_put(b"test:b", b"2")
    assert sorted(internals.kv_list(b"test:")) == [b"test:a", b"test:b"]
    assert internals.kv_get(b"test:a") == b"1"
    internals.kv_delete(b"test:a")
    assert internals.kv_get(b"test:a") == b""
    internals.kv_delete_prefix(b"test:")
    assert internals.kv_list(b"test:") == []
    assert internals.draining_nodes() == set()
    assert internals.spill_folder()
