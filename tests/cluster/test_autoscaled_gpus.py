"""`--gpus yes` on a cluster whose group of GPU nodes has no node: Ray's own autoscaler starts one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from autoscaling import AutoscalingCluster
from launches import ROOT, training_flags
from prepared import write_shards


@pytest.mark.skipif(torch.cuda.is_available(), reason="the nodes that the autoscaler starts here would share a GPU")
def test_a_training_starts_a_gpu_node_and_runs_on_it(tmp_path: Path) -> None:
    """The node has a GPU for Ray but none for torch, which the training's rank finds out on that node."""
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    cluster = AutoscalingCluster({"gpu": ({"CPU": 2, "GPU": 2, "object_store_memory": 10**8}, 1)})
    try:
        assert cluster.gpus() == 0
        flags = [*training_flags(tmp_path, "run", 1), "--address", cluster.address, "--gpus", "yes"]
        done = subprocess.run(
            [sys.executable, "pipeline/train.py", *flags],
            cwd=ROOT, env=cluster.environment(), capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        assert cluster.gpus() == 2
    finally:
        cluster.stop()
    assert done.returncode == 1, done.stderr
    assert f"finds no GPU on {os.uname().nodename}" in done.stderr, done.stderr
    assert "Waiting for 2 GPUs since" in done.stderr
