"""The names that `import ast_core` offers, and what it loads for them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ast_core

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "pyarrow", "soundfile", "ray", "mlflow")


def loaded_by(program: str) -> set[str]:
    """Return the modules of a fresh process that ran a program."""
    command = [sys.executable, "-c", f"import json, sys; {program}; print(json.dumps(list(sys.modules)))"]
    return set(json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))


def test_import_loads_no_other_module() -> None:
    loaded = loaded_by("import ast_core; dir(ast_core)")
    assert not loaded & set(HEAVY)
    assert not [name for name in loaded if name.startswith("ast_core.")]


def test_settings_and_errors_load_neither_torch_nor_numpy() -> None:
    assert not loaded_by("from ast_core import ModelConfig, UserError") & set(HEAVY)


def test_the_decoders_process_loads_only_what_decoding_needs() -> None:
    assert not loaded_by("import ast_core.audio.decoder_process") & {"torch", "pyarrow", "ray", "mlflow"}


def test_every_name_resolves_once_and_star_imports_all() -> None:
    for name in ast_core.__all__:
        value = getattr(ast_core, name)
        assert value.__name__ == name
        assert getattr(ast_core, name) is value
        assert name in dir(ast_core)
    names: dict[str, object] = {}
    exec("from ast_core import *", names)
    assert set(ast_core.__all__) <= set(names)


def test_type_checkers_see_the_names_that_resolve() -> None:
    tree = ast.parse(Path(ast_core.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in ast.walk(checked)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == sorted(ast_core.__all__)
    assert seen == {name: f"ast_core.{module}" for name, module in ast_core._MODULES.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ast_core' has no attribute 'Ast'"):
        _ = ast_core.Ast
