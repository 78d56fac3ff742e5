"""Every benchmark that needs no Ray runs and prints its figure. No time is asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OVER_RAY = {"ray_train", "cold_start", "load_clips", "load_serving"}
"""Benchmarks that start Ray or a server, which takes half a minute; `tests/pipeline` and `test_load.py` cover them."""
NAMES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - OVER_RAY)
PRESENT = {"registry": {"ray", "mlflow"}}
"""Packages that a benchmark measures; the others run without Ray and MLflow."""
FIGURE = {"parity": "difference from torchaudio", "registry": "found by its bundle in"}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_prints_its_figure_without_ray_and_mlflow(name: str, tmp_path: Path) -> None:
    for absent in {"ray", "mlflow"} - PRESENT.get(name, set()):
        (tmp_path / f"{absent}.py").write_text(f"raise ImportError('no {absent} here')\n")
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert FIGURE.get(name, "ratio ") in done.stdout
    assert "cores of" in done.stdout
