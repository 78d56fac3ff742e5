"""Each benchmark runs at its tiniest and prints its figure; no time is asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
FIGURE = ("ratio ", "goal ")
Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All of them, two at a time: most of their seconds are imports."""
    environment = {key: value for key, value in os.environ.items() if key not in {"RAY_ADDRESS", "MLFLOW_TRACKING_URI"}}

    def run(script: Path) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp(script.stem)
        command = [sys.executable, str(script), "--quick"]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        # Those that start a Ray come first: they take longest.
        order = sorted(SCRIPTS, key=lambda script: script.stem not in {"cold_start", "ray_train"})
        yield {script.stem: pool.submit(run, script) for script in order}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [script.stem for script in SCRIPTS])
def test_a_benchmark_prints_its_figure(runs: Runs, name: str):
    finished = runs[name].result()
    assert finished.returncode == 0, finished.stderr
    assert any(word in finished.stdout for word in FIGURE), finished.stdout
