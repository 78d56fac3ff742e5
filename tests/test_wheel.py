"""The wheel has everything that the pipeline reads, and runs in an environment without a checkout."""

from __future__ import annotations

import ast
import importlib.metadata
import zipfile
from pathlib import Path

import pytest
from installed_wheel import PACKAGES, ROOT, Installed, build_wheel, install_wheel

from pipeline.cli.main import STAGES
from pipeline.cli.recipe_file import RECIPES

pytestmark = pytest.mark.slow  # pip builds and installs
OF_EXTRAS = {"av", "kubernetes", "onnxscript", "optuna"}
"""Packages that the code imports only for what an extra is for."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Installed:
    return install_wheel(wheel, wheel.parent / "environment")


def test_wheel_has_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {
        "ast_core/py.typed",
        "pipeline/recipes/demo.toml",
        "pipeline/reporting/report.html",
        "pipeline/serving/page/page.js",
    } <= found


def test_wheel_requires_every_package_that_the_code_imports(installed: Installed) -> None:
    names: set[str] = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    program = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n) is None))"
    done = installed.run("python", "-c", program, *sorted(names), folder=installed.folder)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == OF_EXTRAS


def test_program_shows_version_stages_and_recipes_in_another_folder(installed: Installed, tmp_path: Path) -> None:
    version = installed.run("ast-pipeline", "--version", folder=tmp_path)
    assert version.stdout == f"ast-pipeline {importlib.metadata.version('ast-pipeline')}\n"
    shown = installed.run("ast-pipeline", "--help", folder=tmp_path).stdout
    assert all(f"  {stage} " in shown for stage in STAGES)
    refused = installed.run("ast-pipeline", "run", "--recipe", "unknown", folder=tmp_path)
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    assert f"one of: {names}." in refused.stderr


def test_stage_reads_recordings_in_another_folder(installed: Installed, tmp_path: Path, save_tone) -> None:
    for number in range(6):
        save_tone(tmp_path / "recordings" / "deep" / f"{number}.wav", pitch_hz=200 + number, seed=number)
        save_tone(tmp_path / "recordings" / "high" / f"{number}.wav", pitch_hz=900 + number, seed=number)
    done = installed.run("ast-pipeline", "check", "recordings", "--workers", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 clips, 12 can be used; 2 classes" in done.stdout


@pytest.mark.ray
@pytest.mark.long  # an epoch of the demo with a Ray of its own; the quick form is `check` above
@pytest.mark.timeout(900)
def test_demo_runs_to_a_report_in_another_folder(installed: Installed, tmp_path: Path) -> None:
    epochs = ["--optim.epochs", "1", "--optim.average-first-epoch", "1", "--ensemble.seeds", "0", "1"]
    done = installed.run("ast-pipeline", "run", "--recipe", "demo", *epochs, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Made: models:/ast-demo@champion, of 2 members" in done.stdout
    assert "mAP" in (tmp_path / "work" / "demo" / "report.html").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name != "work"]
