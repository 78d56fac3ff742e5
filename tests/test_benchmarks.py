"""Every benchmark that needs no Ray runs and prints its figure. No time is asserted."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
OVER_RAY = {"ray_train", "cold_start", "load_clips", "load_serving"}
"""Benchmarks that start Ray or a server, which takes half a minute; `tests/pipeline` and `test_load.py` cover them."""
NAMES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - OVER_RAY)
PRESENT = {"registry": {"ray", "mlflow"}}
"""Packages that a benchmark measures; the others run without Ray and MLflow."""
ABSENT = {"gpu": {"soundfile", "soxr", "tyro"}}
"""Further packages that a benchmark must do without."""
FIGURE = {
    "gpu": "ours compile patchout, ast_micro, stride 16",
    "parity": "difference from torchaudio",
    "registry": "found by its bundle in",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_prints_its_figure_without_ray_and_mlflow(name: str, tmp_path: Path) -> None:
    for absent in {"ray", "mlflow"} - PRESENT.get(name, set()) | ABSENT.get(name, set()):
        (tmp_path / f"{absent}.py").write_text(f"raise ImportError('no {absent} here')\n")
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert FIGURE.get(name, "ratio ") in done.stdout
    assert "cores of" in done.stdout


def test_gpu_benchmark_lists_parts_that_fail_or_do_not_fit_and_runs_the_others(capsys) -> None:
    gpu = importlib.import_module("gpu")

    def wait() -> Iterator[Any]:
        yield gpu.Figure("before the end", 1.0, "s")
        time.sleep(60)

    def fail(error: Exception) -> Iterator[Any]:
        raise error
        yield

    parts = [
        gpu.Part("slow", 1, wait),
        gpu.Part("bad", 1, lambda: fail(ValueError("why"))),
        gpu.Part("lacks a peer", 1, lambda: fail(ImportError("no peer"))),
        gpu.Part("last", 1, lambda: iter([gpu.Figure("a check", 2.0, "", "at most 1", reached=False)])),
    ]
    outcome = gpu.Outcome("cpu", "torch")
    started = time.monotonic()
    gpu.run_parts(parts, 2.0, outcome)
    assert time.monotonic() - started < 10
    assert [figure.name for figure in outcome.figures] == ["before the end", "a check"]
    assert [text.partition(" (")[0] for text in outcome.did_not_fit] == ["slow"]
    assert outcome.failed == {"bad": "ValueError: why"}
    assert outcome.missing == ["lacks a peer (no peer)"]
    assert not outcome.is_good()
    assert "goal at most 1: not reached" in capsys.readouterr().out
