"""The house's rules that no linter knows."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ast_core", "pipeline", "tune")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
MOST_MODULES = 15
STAGES = {
    "calibrate", "check", "combine", "cross_validate", "embed", "evaluate", "export", "listen", "predict", "prepare",
    "probe", "register", "report", "run", "serve", "train",
}  # fmt: skip
"""Stages of `pipeline`: one file each."""
VAGUE = {"utils", "util", "helpers", "common", "misc", "tools"}
INSTALLED = set(importlib.metadata.packages_distributions()) - set(PACKAGES)

each_source = pytest.mark.parametrize("path", SOURCES, ids=NAMES)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def calls(path: Path) -> set[str]:
    found = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(function) for function in found}


@each_source
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    for function in functions(path):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= LONGEST_FUNCTION, f"{function.name} has {lines} lines"


@each_source
def test_names_say_what_and_hide_no_module(path: Path) -> None:
    # `python pipeline/train.py` puts pipeline/ first on the path: a module *or folder* pipeline/queue would break it.
    names = [path.stem, *(folder.name for folder in path.relative_to(ROOT).parents if folder.name not in PACKAGES)]
    for name in {*names} - {"__init__", ""}:
        assert name not in VAGUE
        if not path.is_relative_to(ROOT / "ast_core"):
            assert name not in sys.stdlib_module_names | INSTALLED


def test_a_folder_shows_its_modules_at_a_glance() -> None:
    stages = ROOT / "pipeline"  # it has one module a stage, and the test below allows no other
    modules = Counter(path.parent for path in SOURCES if path.stem != "__init__" and path.parent != stages)
    assert max(modules.values()) <= MOST_MODULES, modules.most_common(1)


def test_no_two_modules_share_a_name() -> None:
    stems = Counter(path.stem for path in SOURCES if path.stem != "__init__")
    assert [name for name, count in stems.items() if count > 1] == []


def test_pipeline_lists_the_stages_and_nothing_else() -> None:
    assert {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"} == STAGES


def test_init_files_are_empty_where_an_import_would_load_torch_or_mlflow() -> None:
    speaking = {ROOT / "ast_core" / "__init__.py", ROOT / "pipeline" / "serving" / "__init__.py"}
    for path in SOURCES:
        if path.stem == "__init__" and path not in speaking:
            assert not path.read_text().strip(), path


@each_source
def test_ray_starts_in_one_place_and_pickle_in_none(path: Path) -> None:
    found = calls(path)
    if path != ROOT / "pipeline" / "ray_runtime" / "connection.py":
        assert "ray.init" not in found
    if path != ROOT / "ast_core" / "weights" / "pretrained.py":
        assert "torch.load" not in found
    assert not {"pickle.load", "pickle.loads", "joblib.load"} & found


def test_unpickling_is_of_weights_only() -> None:
    tree = ast.parse((ROOT / "ast_core" / "weights" / "pretrained.py").read_text())
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert loads
    for node in loads:
        assert {"weights_only": "True"}.items() <= {word.arg: ast.unparse(word.value) for word in node.keywords}.items()


def test_the_science_reads_no_environment() -> None:
    for path in SOURCES:
        if path.is_relative_to(ROOT / "ast_core"):
            assert "os.environ" not in path.read_text()
            assert "os.getenv" not in path.read_text()
