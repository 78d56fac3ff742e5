"""`--gpus yes` on a cluster whose group of GPU nodes has no node: Ray's own autoscaler starts one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from autoscaling import AutoscalingCluster
from launches import ROOT, training_flags
from prepared import write_shards

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the nodes of this machine would share its GPU"),
]


@pytest.fixture
def cluster() -> Iterator[AutoscalingCluster]:
    """Start a head; at most one node of two GPUs comes with the first request, without a device."""
    started = AutoscalingCluster({"gpu": ({"CPU": 2, "GPU": 2, "object_store_memory": 10**8}, 1)})
    try:
        yield started
    finally:
        started.stop()


def run(cluster: AutoscalingCluster, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT, env=cluster.environment(), capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def test_the_wait_for_gpus_starts_a_node_that_then_runs_the_work(cluster: AutoscalingCluster, tmp_path: Path) -> None:
    done = run(cluster, "tests/support/gpu_task.py", cluster.address, str(tmp_path))
    assert done.stdout.splitlines() == ["before 1 False True", "after 2 2 False", "task 2.0"], done.stderr


@pytest.mark.long
def test_a_training_starts_a_gpu_node_and_runs_on_it(cluster: AutoscalingCluster, tmp_path: Path) -> None:
    """Only the node that the autoscaler starts has GPUs for Ray; a rank finds out there that torch has none."""
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    flags = [*training_flags(tmp_path, "run", 2), "--address", cluster.address, "--gpus", "yes"]
    done = run(cluster, "pipeline/train.py", *flags)
    assert done.returncode == 1, done.stderr
    assert "torch finds no GPU there. Check the node's driver" in done.stderr, done.stderr
    assert "Starting again" not in done.stderr
