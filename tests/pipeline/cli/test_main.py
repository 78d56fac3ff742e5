"""`ast-pipeline STAGE`: every stage is listed, and nothing heavy is imported before the flags are known to be right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ast_core.errors import UserError
from pipeline.cli.command_line import parse_settings
from pipeline.cli.inputs import require_inputs
from pipeline.cli.main import STAGES, main
from pipeline.cli.stages import RegisterSettings
from tune.settings import SearchSettings

ROOT = Path(__file__).resolve().parents[3]
HEAVY = {"torch", "ray", "mlflow", "pandas", "pyarrow", "matplotlib", "scipy"}
PROGRAM = f"""
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted({HEAVY} & set(sys.modules)))))
from pipeline.cli.main import main
main(sys.argv[1:])
"""


def run_program(*words: str) -> tuple[int, str, list[str]]:
    """Run the program; return its exit code, its output, and the heavy packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    output, _, imported = done.stdout.rstrip().rpartition("\n")
    return done.returncode, output + done.stderr, json.loads(imported)


def test_help_lists_every_stage_with_one_line_and_imports_nothing_heavy() -> None:
    code, output, imported = run_program("--help")
    assert (code, imported) == (0, [])
    lines = dict(line.split(maxsplit=1) for line in output.partition("stages:\n")[2].splitlines())
    assert list(lines) == list(STAGES)
    modules = {path for folder in ("pipeline", "tune") for path in (ROOT / folder).glob("*.py")}
    stages = {path.stem for path in modules if "\ndef main(" in path.read_text()}
    assert stages == {entry.module.rpartition(".")[2] for entry in STAGES.values()}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "--help"], 0, "--optim.learning-rate"),
        (["search", "--help"], 0, "--study"),
        (["--version"], 0, "ast-pipeline "),
        (["--print-completion", "bash"], 0, "complete -F"),
        ([], 0, "usage: ast-pipeline STAGE"),
        (["--", "train"], 2, "unrecognized arguments: "),
        (["--recipe", "demo", "train"], 2, "unrecognized arguments: --recipe demo train"),
        (["trian"], 2, "the stage 'trian' does not exist. Did you mean train?"),
        (["help"], 2, "`ast-pipeline --help` lists the stages"),
        (["cross_validate", "--help"], 0, "usage: ast-pipeline cross-validate"),
        (["train", "--optim.learning-rat", "1"], 2, "--optim.learning-rate"),
        (["run", "--recipe", "own", "--data.source", "nowhere"], 1, "nowhere does not exist"),
        (["check", ".", "--data.root", "nowhere"], 1, "nowhere is not a folder"),
        (["run", "--recipe", "esc50"], 1, "data.source is empty"),
        (["prepare", "--recipe", "nowhere.toml"], 1, "Recipe 'nowhere.toml' does not exist"),
        (["train", "--recipe", "demo", "--run-dir", "nowhere"], 1, "There are no shards in"),
        (["train", "--recipe", "demo", "--model.init", "nowhere.pth"], 1, "nowhere.pth does not exist"),
        (["check", "nowhere"], 1, "nowhere does not exist"),
        (["register", "--run-dir", "nowhere"], 1, "nowhere does not exist"),
        (["predict"], 1, "give audio files or folders"),
        (["predict", "nowhere.wav"], 1, "nowhere.wav does not exist"),
        (["predict", "README.md", "--model", "nowhere"], 1, "--model nowhere does not exist"),
        (["embed", "README.md", "--output", "a.parquet", "--model", "ast_core"], 1, "is a file's name, and embeddings"),
    ],
)  # fmt: skip
def test_flags_are_answered_before_anything_heavy_is_imported(words: list[str], code: int, message: str) -> None:
    found, output, imported = run_program(*words)
    assert (found, imported) == (code, [])
    assert message in " ".join(output.split())


def test_help_needs_no_installed_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pipeline.cli.main.PROGRAM", "nothing-installed")
    main([])
    assert "cross-validate" in capsys.readouterr().out


def test_stages_that_can_do_without_shards_or_recordings_are_not_refused(tmp_path: Path) -> None:
    flags = ["--run-dir", str(tmp_path), "--data.source", str(tmp_path / "gone")]
    require_inputs(parse_settings(RegisterSettings, "", flags[:2]))  # registers bundles
    search = parse_settings(SearchSettings, "", flags)
    with pytest.raises(UserError, match="gone does not exist"):
        require_inputs(search)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "index.json").touch()
    require_inputs(search)
    require_inputs(parse_settings(SearchSettings, "", [*flags, "--shards", "none", "--storage", "s3://bucket/run"]))


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_is_a_function_that_takes_the_settings_of_the_table(name: str) -> None:
    entry = STAGES[name]
    kind = entry.load_settings_class()
    assert kind.__name__.removesuffix("Settings") == name.title().replace("-", "")
    words = ["README.md"] if name in {"check", "predict", "export"} else []
    words += ["README.md", "--output", "out"] if name == "embed" else []
    assert isinstance(parse_settings(kind, "", words), kind)
    text = (ROOT / f"{entry.module.replace('.', '/')}.py").read_text()
    stem = entry.module.rpartition(".")[2]
    assert f"\ndef {stem}(settings: {kind.__name__}" in text
    assert f"run_stage(lambda: {stem}(parse_settings({kind.__name__}, __doc__, argv)))" in text
