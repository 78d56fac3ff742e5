"""A Ray cluster whose nodes Ray's own autoscaler starts, as further Ray nodes of this machine."""

from __future__ import annotations

import json
from typing import Any

import psutil
from clusters import HOST, Cluster

HEAD_GROUP = "ray.head.default"
HEAD_ID = "f" * 51 + "00000"
"""Group and node id under which Ray's provider for tests knows the head."""


class AutoscalingCluster(Cluster):
    """A head without CPUs, and groups of nodes that have no node at first.

    Args:
        groups: resources of a node, and the largest number of nodes, by group.
    """

    dashboard_modules = ("NodeHead",)

    def __init__(self, groups: dict[str, tuple[dict[str, int], int]]) -> None:
        self._groups = groups
        super().__init__()

    def environment(self) -> dict[str, str]:
        """For programs that are to know this cluster, and no other."""
        return super().environment() | {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_SCHEDULER_EVENTS": "0",  # no lines of the autoscaler in the output of programs
        }

    def _start(self, cpus: int, *words: str) -> psutil.Process:
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(self._autoscaling()))
        return super()._start(cpus, *words, f"--autoscaling-config={file}")

    def _autoscaling(self) -> dict[str, Any]:
        """Return the file that `ray up` would make for Ray's provider for tests."""
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        groups = {name: {"resources": own, "max_workers": most} for name, (own, most) in self._groups.items()}
        groups[HEAD_GROUP] = {"resources": {"CPU": 0}, "max_workers": 0}
        return {
            "cluster_name": "test",
            "max_workers": sum(most for _, most in self._groups.values()),
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 5,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": f"{HOST}:{self.port}",
                "head_node_id": HEAD_ID,
                "launch_multiple": True,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "head_node_type": HEAD_GROUP,
            "available_node_types": {name: {**group, "node_config": {}} for name, group in groups.items()},
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            **{f"{name}_commands": [] for name in commands},
        }
