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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[1]
OVER_RAY = {"ray_train", "cold_start", "load_clips", "load_serving", "predict"}
"""Benchmarks that start Ray or a server, which takes half a minute; `tests/pipeline` and `test_load.py` cover them."""
NAMES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - OVER_RAY)
PRESENT = {"registry": {"ray", "mlflow"}}
"""Packages that a benchmark measures; the others run without Ray and MLflow."""
ABSENT = {"gpu": {"ray", "mlflow", "soundfile", "soxr", "tyro"}}
"""All packages that a benchmark must do without, if these are more than Ray and MLflow."""
TOGETHER = [name for name in NAMES if name not in PRESENT | ABSENT]
SHORT = {"parity", "train_step"}
"""Benchmarks that `make test` runs; the others differ in what they measure, not in how they are run."""
FIGURE = {
    "few_recordings": "| k-NN | ",
    "gpu": "ours compile patchout, ast_micro, stride 16",
    "parity": "difference from torchaudio",
    "registry": "found by its bundle in",
}
FORKING = """
import contextlib, importlib, os, runpy, sys
folder, *names = sys.argv[1:]
for module in ("torch", "torchaudio", "timm", "numpy", "pyarrow.parquet", "soundfile", "soxr"):
    with contextlib.suppress(ImportError):
        importlib.import_module(module)
for name in names:
    child = os.fork()
    if child == 0:
        output = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv[:] = [os.path.join("BENCHMARKS", f"{name}.py"), "--quick"]
        sys.path[0] = "BENCHMARKS"
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""".replace("BENCHMARKS", str(ROOT / "benchmarks"))
"""Program that forks a process for each benchmark after the imports, which take longer than most benchmarks."""


def run_quickly(names: list[str], absent: set[str], folder: Path) -> dict[str, int]:
    """Run benchmarks without some packages; write their output to files in `folder` and return their exit codes."""
    hidden = folder / "hidden"
    hidden.mkdir(parents=True)
    for package in absent:
        (hidden / f"{package}.py").write_text(f"raise ImportError('no {package} here')\n")
    environment = os.environ | {"PYTHONPATH": f"{hidden}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", FORKING, str(folder), *names]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540, check=True)
    codes = (line.split() for line in done.stdout.splitlines())
    return {name: int(code) for name, code in codes}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, tuple[int, str]]:
    """Return exit code and output of each benchmark that runs without Ray and MLflow."""
    folder = tmp_path_factory.mktemp("benchmarks")
    names = [name for name in TOGETHER if name in SHORT or request.config.getoption("--long")]
    codes = run_quickly(names, {"ray", "mlflow"}, folder)
    return {name: (code, (folder / name).read_text()) for name, code in codes.items()}


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in TOGETHER]
)
def test_a_benchmark_prints_its_figure_without_ray_and_mlflow(name: str, outputs: dict[str, tuple[int, str]]) -> None:
    require_figure(name, *outputs[name])


@pytest.mark.long  # mostly MLflow's own work, which tests/pipeline/test_register.py covers
@pytest.mark.parametrize("name", PRESENT)
def test_a_benchmark_of_ray_or_mlflow_prints_its_figure(name: str, tmp_path: Path) -> None:
    code = run_quickly([name], {"ray", "mlflow"} - PRESENT[name], tmp_path)[name]
    require_figure(name, code, (tmp_path / name).read_text())


@pytest.mark.long  # a minute for all of its parts, each of which has tests of its own
@pytest.mark.parametrize("name", ABSENT)
def test_a_benchmark_prints_its_figure_without_further_packages(name: str, tmp_path: Path) -> None:
    code = run_quickly([name], ABSENT[name], tmp_path)[name]
    require_figure(name, code, (tmp_path / name).read_text())


def require_figure(name: str, code: int, output: str) -> None:
    assert code == 0, output
    assert FIGURE.get(name, "ratio ") in output
    assert "cores of" in output


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
