"""Pods of the tests on a real Kubernetes, and waiting for what a cluster does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from generate_jobs import load_values
from one_node import Cluster

WORKER = "ray.io/node-type=worker"
HEAD = "ray.io/node-type=head"


def wait_until(ended: Callable[[], bool], limit_s: float, what: str) -> None:
    """Wait until something has happened; AssertionError after so many seconds."""
    end_s = time.monotonic() + limit_s
    while not ended():
        assert time.monotonic() < end_s, f"{limit_s} s passed without {what}."
        time.sleep(3)


def newest_pod(cluster: Cluster, label: str) -> str:
    """Return the name of the newest pod with a label."""
    return cluster.kubectl(
        "get", "pods", "-n=ast", f"-l={label}", "--sort-by=.metadata.creationTimestamp",
        "-o=jsonpath={.items[-1:].metadata.name}",
    )  # fmt: skip


def restricted_pod(name: str, namespace: str, labels: dict[str, str], command: list[str]) -> dict[str, Any]:
    """Return a pod of the product's image that a restricted namespace admits."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": load_values()["image"],
                    "command": command,
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
