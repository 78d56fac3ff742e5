"""Each command and line of Python in README and docs runs here or in a named test, or is listed with the reason."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from document_sandbox import Sandbox
from documented import IN_THE_TEST, PAGES, ROOT, Block, blocks, stage_of, treatment
from local_hub import LocalHub

from pipeline.cli.command_line import load_recipe, parse_settings
from pipeline.cli.main import STAGES, main
from pipeline.cli.recipe_file import last_flag_value
from tune.studies import load_study

OWN = "tests/test_document_commands.py"
INPUT_FLAGS = {"--model", "--recipe", "--study", "--model.init", "--distil.teacher", "--clip-list"}
"""Flags whose value is a file or folder that must exist before the command."""
KEYWORDS = {"scratch", "imagenet"}
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block.place, command) for block in BLOCKS if block.language == "bash" for command in block.commands()]
NAMED = re.compile(
    r"hf:[\w.-]+/[\w.-]+|models:/[\w-]+@\w+|(?:[\w-]+/)*bundles/[\w-]+|[\w/-]+\.(?:wav|flac|json|csv|toml|parquet)"
)
"""Names in Python lines of what must exist before they run."""


def starts_ray(block: Block) -> bool:
    """Return whether a block of Python uses Ray, and so runs in a test of its own, with the names that it defines."""
    return block.language == "python" and "import ray" in block.text


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory, save_tone, new_store) -> Sandbox:
    made = Sandbox(tmp_path_factory.mktemp("documents"), save_tone, new_store)
    made.write_shards()
    return made


def test_every_command_is_run_by_a_test_or_listed_with_the_reason() -> None:
    unknown = [f"{place}: {command}" for place, command in COMMANDS if not treatment(command)]
    assert not unknown, "add these commands to tests/support/documented.py:\n" + "\n".join(unknown)
    assert len(COMMANDS) > 20


def test_the_tests_that_run_the_commands_exist() -> None:
    named = {own for _, command in COMMANDS if (own := treatment(command)).startswith("tests/")}
    missing = [name for name in sorted(named) if not (ROOT / name.partition(" ")[0]).is_file()]
    assert not missing


def test_every_block_names_a_language_that_is_checked() -> None:
    unknown = [block.place for block in BLOCKS if block.language not in {"bash", "python", "toml", "json", "text"}]
    assert not unknown, f"blocks of a language that no test reads: {unknown}"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_commands_and_the_python_of_a_page_run(
    page: Path, sandbox: Sandbox, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sandbox.folder)
    sandbox.hub = hub
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks(page):
        if block.language == "bash":
            for command in block.commands():
                run_command(command, sandbox)
        elif block.language == "python" and not starts_ray(block):
            run_python(block, names, sandbox)
        elif block.language == "toml":
            check_toml(block, sandbox.folder)
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("block", [block for block in BLOCKS if starts_ray(block)], ids=lambda block: block.place)
def test_the_python_that_uses_ray_runs(block: Block, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox.folder)
    run_python(block, {"__name__": "document"}, sandbox)


def run_command(command: str, sandbox: Sandbox) -> None:
    """Parse a stage's flags and run the stage if it starts nothing; run other commands that belong to this test."""
    stage = stage_of(command)
    if stage is None:
        if treatment(command) == OWN:
            subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=sandbox.folder, check=True)
        return
    name, flags = stage
    if re.fullmatch("[A-Z]+", last_flag_value(flags, "--recipe", "")):  # stands for any recipe
        return
    for value, is_model in inputs_of(name, flags):
        sandbox.provide(value, is_model)
    parse_settings(STAGES[name].load_settings_class(), "", flags)
    if name in IN_THE_TEST and not any(word.startswith("/") for word in flags):  # "/data" is another machine's
        assert exit_status([name, *flags]) == 0, command


def exit_status(words: list[str]) -> int:
    """Run the program `ast-pipeline` in this process, and return its exit status."""
    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def inputs_of(stage: str, flags: list[str]) -> list[tuple[str, bool]]:
    """Return what must exist before a stage is parsed, and whether it is a model."""
    found = []
    for flag, value in pairwise(flags):
        is_model = flag in {"--model", "--model.init"}
        is_path = "/" in value or "." in value  # otherwise the name of a recipe or of a study
        if flag in INPUT_FLAGS and value not in KEYWORDS and (is_model or is_path):
            found.append((value, is_model))
    first = next((place for place, word in enumerate(flags) if word.startswith("-")), len(flags))
    return found + ([(word, False) for word in flags[:first]] if stage in {"check", "predict", "embed"} else [])


def run_python(block: Block, names: dict[str, Any], sandbox: Sandbox) -> None:
    """Run the Python of a block; the blocks of a page share their names."""
    tree = ast.parse(block.text)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for text in texts:
        if NAMED.fullmatch(text):
            sandbox.provide(text)
    exec(compile(tree, block.place, "exec"), names)


def check_toml(block: Block, folder: Path) -> None:
    """Check a recipe or a study with the parser of recipes or of studies."""
    values = tomllib.loads(block.text)
    path = folder / f"{block.page.stem}-{block.line}.toml"
    path.write_text(block.text)
    if {"grid", "range", "variants"} & values.keys():
        load_study(str(path))
    else:
        load_recipe(str(path))
