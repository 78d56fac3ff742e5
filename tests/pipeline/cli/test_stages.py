"""Settings from a recipe and flags: one parser checks both, and an error is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_core.errors import UserError
from pipeline.cli.command_line import load_recipe, parse_settings, select_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import (
    CheckSettings,
    EmbedSettings,
    EvaluateSettings,
    PredictSettings,
    PrepareSettings,
    RunSettings,
    TrainSettings,
)

GOOD = """
[data]
train_splits = ["a", "b"]
[augment]
noise = true
[optim]
epochs = 3
learning_rate = 2.5e-4
[ensemble]
seeds = [4, 5]
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return path


def test_flags_override_the_recipe(recipe):
    settings = parse_settings(TrainSettings, "", ["--recipe", str(recipe), "--optim.epochs", "7", "--seed", "2"])
    assert settings.optim.epochs == 7
    assert settings.optim.learning_rate == 2.5e-4
    assert settings.augment.noise is True
    assert settings.data.train_splits == ("a", "b")
    assert settings.seed == 2


def test_settings_have_absolute_paths_and_default_names(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = parse_settings(RunSettings, "", [f"--recipe={recipe}", "--data.source", "clips"])
    assert settings.run_dir == tmp_path / "work" / "mine"
    assert settings.shards == settings.run_dir / "shards"
    assert settings.model_name == "ast-mine"
    assert settings.data.source == str(tmp_path / "clips")
    assert settings.tracking == f"sqlite:///{tmp_path}/work/mlflow.db"
    assert settings.ensemble.seeds == (4, 5)


def test_repeated_root_flags_name_several_absolute_folders(tmp_path):
    flags = [
        "--recipe",
        "own",
        "--data.root",
        "a",
        "--data.follow-links",
        f"--data.root={tmp_path}",
        "--data.root",
        "b",
        "c",
    ]
    data = parse_settings(PrepareSettings, "", flags).data
    here = Path.cwd()
    assert set(data.root) == {str(here / "a"), str(tmp_path), str(here / "b"), str(here / "c")}
    assert data.follow_links
    assert parse_settings(PrepareSettings, "", ["--recipe", "own"]).data.root == ()
    for flags in (["--data.root", ""], ["--data.root="]):  # an unset variable in a script is not the current folder
        with pytest.raises(UserError, match=r"data\.root has an empty path"):
            parse_settings(PrepareSettings, "", ["--recipe", "own", *flags])


def test_select_settings_keeps_the_sections_of_run(recipe):
    settings = parse_settings(RunSettings, "", ["--recipe", str(recipe)])
    assert select_settings(settings, PrepareSettings).data == settings.data


@pytest.mark.parametrize("text", ["[optim]\nepoch = 3\n", "[optim]\nepochs = 'three'\n", "[optimiser]\nepochs = 3\n"])
def test_wrong_key_or_type_exits_with_a_message(tmp_path, capsys, text):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as exit_info:
        parse_settings(PrepareSettings, "", ["--recipe", str(path)])
    assert exit_info.value.code == 2
    shown = capsys.readouterr()
    assert "epoch" in shown.err + shown.out


def test_value_out_of_range_or_missing_recipe_raises_a_user_error(tmp_path):
    path = tmp_path / "range.toml"
    path.write_text("[optim]\nbatch_size = 0\n")
    with pytest.raises((UserError, SystemExit)):
        load_recipe(str(path))
    with pytest.raises(UserError, match="Recipe 'esc51' does not exist"):
        load_recipe("esc51")
    path.write_text("[optim\n")
    with pytest.raises(UserError, match="is not TOML"):
        load_recipe(str(path))


def test_user_error_prints_one_sentence_and_exits_with_code_1(capsys):
    def stage() -> None:
        raise UserError("No clips in [here]. Do that.")

    with pytest.raises(SystemExit) as exit_info:
        run_stage(stage)
    assert exit_info.value.code == 1
    shown = capsys.readouterr().err
    assert shown == "Error: No clips in [here]. Do that.\n"
    assert "Traceback" not in shown


@pytest.mark.parametrize("name", ["a" * 300, "loop/file"])
def test_path_that_cannot_be_used_prints_one_sentence(name, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = tmp_path / name
    with pytest.raises(SystemExit) as exit_info:
        run_stage(path.stat)
    assert exit_info.value.code == 1
    reason = "Too many levels of symbolic links" if "/" in name else "File name too long"
    shown = capsys.readouterr().err
    assert shown == f"Error: {path} cannot be used: {reason}. Check the path and your rights to it.\n"


def test_workers_that_cannot_share_the_batch_raise_a_user_error():
    with pytest.raises(
        UserError, match=r"batch-size 12 cannot be split over 8 workers\. Set --workers to one of 1, 2, 3, 4, 6, 12, or"
    ):
        parse_settings(RunSettings, "", ["--recipe", "audioset_full", "--workers", "8"])
    assert parse_settings(RunSettings, "", ["--recipe", "audioset_full", "--workers", "6"]).workers == 6
    assert parse_settings(PrepareSettings, "", ["--recipe", "audioset_full", "--workers", "64"]).workers == 64


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (PrepareSettings, ["--workers", "-1"], "--workers is -1; give 0 or more"),
        (CheckSettings, ["folder", "--workers", "-1"], "--workers is -1; give 0 or more"),
        (EvaluateSettings, ["--bootstrap", "-5"], "--bootstrap is -5; give 0 or more"),
        (EmbedSettings, ["--output", "out", "--layer", "0"], "--layer is 0; give 1 or more"),
        (EmbedSettings, ["--output", ""], "--output is empty; give a folder's name"),
        (PredictSettings, ["--top-k", "0"], "--top-k is 0; give 1 or more"),
        (PredictSettings, ["--hop-s", "0"], "--hop-s is 0.0; give a number of seconds above 0"),
        (PredictSettings, ["--hop-s", "nan"], "--hop-s is nan; give a number of seconds above 0"),
        (PredictSettings, ["--event-threshold", "0"], "--event-threshold is 0.0; give a probability above 0"),
        (PredictSettings, ["--event-release", "1.1"], "--event-release is 1.1; give a share above 0 and at most 1"),
        (PredictSettings, ["--event-overlap", "1"], "--event-overlap is 1.0; give a share from 0 to below 1"),
        (PredictSettings, ["--event-min-s", "-1"], "--event-min-s is -1.0; give 0 or more seconds"),
        (PredictSettings, ["--event-gap-s", "inf"], "--event-gap-s is inf; give 0 or more seconds"),
    ],
)
def test_counts_that_are_too_low_raise_a_user_error(kind, words, message):
    with pytest.raises(UserError, match=message):
        parse_settings(kind, "", words)


def test_stage_file_starts_the_program_before_its_slow_imports():
    stages = Path(__file__).resolve().parents[3] / "pipeline"
    for path in stages.glob("[!_]*.py"):
        program, _, rest = path.read_text().partition("    sys.exit()\n")
        assert f'start(["{path.stem.replace("_", "-")}", *sys.argv[1:]])' in program
        assert "from ast_core" not in program
        assert "def main(argv: Sequence[str] | None = None) -> None:" in rest


def test_variant_overrides_the_recipe_but_not_the_flags_and_has_its_own_folder():
    paper = parse_settings(RunSettings, "", ["--recipe", "esc50", "--variant", "paper", "--optim.epochs", "3"])
    assert (paper.front_end.window, paper.optim.epochs) == ("hamming", 3)
    assert (paper.run_dir.name, paper.experiment, paper.model_name) == ("esc50_paper", "esc50_paper", "ast-esc50-paper")
    assert parse_settings(RunSettings, "", ["--recipe", "esc50"]).run_dir.name == "esc50"
    with pytest.raises(UserError, match=r"has no variant 'paper'. Give one of: published"):
        parse_settings(RunSettings, "", ["--recipe", "demo", "--variant=paper"])


def test_missing_initial_checkpoint_raises_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"audioset\.pth does not exist"):
        parse_settings(TrainSettings, "", ["--recipe", "esc50_ast_p", "--model.init", "audioset.pth"])
    named = parse_settings(TrainSettings, "", ["--recipe", "esc50_ast_p"]).model.init
    assert named == "hf:MIT/ast-finetuned-audioset-10-10-0.4593"
    (tmp_path / "mine.pth").touch()
    settings = parse_settings(
        TrainSettings, "", ["--recipe", "esc50_ast_p", "--model.init", str(tmp_path / "mine.pth")]
    )
    assert settings.model.init == str(tmp_path / "mine.pth")
    assert parse_settings(PrepareSettings, "", ["--recipe", "esc50_ast_p"]).front_end.target_frames == 512
