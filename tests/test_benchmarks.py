"""Every benchmark that needs no Ray runs and prints its figure; no time is asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OVER_RAY = {"ray_train", "cold_start", "load_clips", "load_serving"}
"""Half a minute each to start Ray or a server, for what other tests run: `tests/pipeline` and `test_load.py`."""
NAMES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - OVER_RAY)
FIGURE = {"parity": "difference from torchaudio"}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_prints_its_figure(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert FIGURE.get(name, "ratio ") in done.stdout
    assert "cores of" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_neither_ray_nor_mlflow(name: str, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('no ray here')\n")
    (tmp_path / "mlflow.py").write_text("raise ImportError('no mlflow here')\n")
    path = ROOT / "benchmarks" / f"{name}.py"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(0, {str(path.parent)!r})\n"
    code += f"sys.argv = [{str(path)!r}, '--help']\nimport runpy\nrunpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
