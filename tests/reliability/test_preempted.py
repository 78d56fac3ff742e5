"""Leaving in good order: SIGTERM to the driver, and nodes that are drained, cost no step and no bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from clusters import Cluster
from launches import ROOT, has_epoch, last_step, newest_step, of_session, training_flags, wait_until
from mlflow import MlflowClient
from trainings import EPOCHS, outcome, trained

from pipeline.ray_runtime.drain_node import drain

Driver = subprocess.Popen[bytes]


def launch(folder: Path, run: str, environment: dict[str, str], *more: str) -> Driver:
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *training_flags(folder, run, EPOCHS), *more]
    with (folder / f"{run}.log").open("wb") as log:
        environment = environment | {"AST_LOG_LEVEL": "DEBUG"}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.timeout(900)
def test_sigterm_commits_the_last_step_and_ends_soon(folder: Path, whole: Path, ray_session, measured) -> None:
    member = folder / "asked" / "members" / "seed-0"
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        driver = launch(folder, "asked", others | {"RAY_TMPDIR": ray_folder})
        try:
            wait_until(lambda: has_epoch(member, 3), lambda: driver.poll() is None)
            sent = time.monotonic()
            driver.send_signal(signal.SIGTERM)
            assert driver.wait(timeout=30) == 143
            gone_s = time.monotonic() - sent
        finally:
            for process in of_session(driver.pid):
                process.kill()
        log = "".join(path.read_text() for path in Path(ray_folder).glob("ray/session_2*/logs/worker-*.out"))
    said, run = (folder / "asked.log").read_text(), folder / "asked"
    left = re.search(r"seed-0 stopped at step (\d+)", said)
    assert left, said
    assert newest_step(member) == int(left[1]) == last_step(log, run, 0) == last_step(log, run, 1)
    assert not has_epoch(member, EPOCHS)
    assert tracked(folder, "asked") == "KILLED"

    trained(folder, "asked")
    assert outcome(member) == outcome(whole)
    measured("R25", gone_s=gone_s, left_at_step=int(left[1]), steps_lost=0)


def tracked(folder: Path, run: str) -> str:
    """Return what MLflow says about a run's training."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], f"tags.run_dir = '{folder / run}'")
    return str(found.info.status)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_training_leaves_a_node_that_is_drained_and_goes_on_elsewhere(
    folder: Path, whole: Path, ray_cluster: Cluster, measured
) -> None:
    member = folder / "drained" / "members" / "seed-0"
    ray_cluster.add_node(2)  # both workers fit on one node; the other one is where they can go
    driver = launch(folder, "drained", ray_cluster.environment(), "--address", ray_cluster.address)
    try:
        wait_until(lambda: has_epoch(member, 2), lambda: driver.poll() is None)
        (node,) = [raylet for raylet in ray_cluster.raylets() if _trains(raylet)]
        hook = [sys.executable, "-m", drain.__module__, "60", str(node.pid)]
        assert subprocess.run(hook, cwd=ROOT, env=ray_cluster.environment(), check=False).returncode == 0
        assert not node.is_running()
        assert driver.wait(timeout=200) == 0, (folder / "drained.log").read_text()
    finally:
        driver.kill()
        driver.wait()
    said = (folder / "drained.log").read_text()
    left = re.search(r"A node is taken away: seed-0 stopped at step (\d+)", said)
    assert left, said
    assert f"Resumed at step {left[1]} from" in ray_cluster.logs()
    assert "Workers were lost" not in said
    assert outcome(member) == outcome(whole)
    measured("R25", drained_nodes=1, left_at_step=int(left[1]), steps_lost=0)


def _trains(raylet: psutil.Process) -> bool:
    return any("RayTrainWorker" in " ".join(child.cmdline()) for child in raylet.children(recursive=True))
