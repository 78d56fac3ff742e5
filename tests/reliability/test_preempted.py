"""SIGTERM to the driver, and nodes that are drained, cost no step and no bit.

`test_interrupted_training` has the short form.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from clusters import Cluster
from launches import ROOT, has_epoch, wait_until
from terminations import launch, terminate
from trainings import outcome, trained

from pipeline.ray_runtime.drain_node import drain

pytestmark = [pytest.mark.long, pytest.mark.ray]


@pytest.mark.timeout(900)
def test_sigterm_commits_the_last_step_and_ends_soon(folder: Path, whole: Path, ray_session, measured) -> None:
    terminated = terminate(folder, "asked")
    assert terminated.exit_code == 143
    assert terminated.committed_step == terminated.stopped_at_step, terminated.said
    assert terminated.last_steps == (terminated.stopped_at_step,) * 2
    assert not terminated.complete
    assert terminated.status == "KILLED"
    assert outcome(trained(folder, terminated.run.name)) == outcome(whole)
    measured("R25", gone_s=terminated.gone_s, left_at_step=terminated.stopped_at_step, steps_lost=0)


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
