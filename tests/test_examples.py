"""The examples run: the notebook to a registered model, the program on a bundle, the recipes on data of their kind."""

from __future__ import annotations

import csv
import io
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NewStore
from main_jobs import EXAMPLES, NOTEBOOK, MainJob, code_of

from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import RunSettings
from pipeline.run_folder.listed_clips import list_clips, missing_splits

PROBE_NOTEBOOK = "embeddings_and_probe.ipynb"
RECIPES = sorted((EXAMPLES / "recipes").glob("*.toml"))


@pytest.mark.timeout(400)
def test_notebook_goes_from_recordings_to_a_registered_model(main_job: MainJob) -> None:
    shown = main_job.cells
    assert "ast-own-recordings, version 1" in shown["registry"]
    assert "ensemble     mAP " in shown["results"]
    assert shown["predict"].count(", listed as [") == 9  # the test recordings
    assert len(shown["timeline"].splitlines()) >= 3


def test_notebook_makes_recordings_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {cell.id: cell.source for cell in code_of(EXAMPLES / NOTEBOOK)}
    exec(cells["settings"] + "\n" + cells["make-recordings"], {})
    assert len(list(tmp_path.glob("recordings/*/*.wav"))) == 60


def test_notebook_of_the_probe_learns_new_classes_from_any_bundle(
    tmp_path: Path, trained_bundle: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    new_store(tmp_path / "work")
    names: dict[str, object] = {}
    shown = {}
    for cell in code_of(EXAMPLES / PROBE_NOTEBOOK):
        exec(cell.source.replace("work/own_recordings/bundles/seed-0", str(trained_bundle)), names)
        shown[cell.id] = capsys.readouterr().out
    assert shown["embed"].startswith("12 recordings, 96 values each, ")
    assert len(shown["nearest"].splitlines()) == 12
    assert "12 test clips of test, 18 training clips" in shown["probe"]
    assert shown["stored"] == "30 rows: path, start_s, end_s, embedding, error\n"
    right = [path.split("/")[0] == label for path, label, _ in map(str.split, shown["predict"].splitlines())]
    assert sum(right) > 6  # of 12; the model's weights are random


@pytest.mark.parametrize("notebook", [NOTEBOOK, PROBE_NOTEBOOK])
def test_notebook_is_committed_without_results(notebook: str) -> None:
    cells = code_of(EXAMPLES / notebook)
    assert len(cells) > 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_program_lists_the_events_of_a_class_and_names_broken_files(
    tmp_path: Path, trained_bundle: Path, save_tone: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_tone(tmp_path / "sounds" / "long.wav", seconds=2.0)
    (tmp_path / "sounds" / "broken.wav").write_text("not audio")
    main = runpy.run_path(str(EXAMPLES / "find_sound.py"))["main"]
    failed = main([str(trained_bundle), "low", str(tmp_path / "sounds"), "--threshold", "0", "--hop-s", "0.5"])
    captured = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(captured.out))  # with this threshold all windows are one event
    assert failed == 1
    assert "broken.wav" in captured.err
    assert Path(row["path"]).name == "long.wav"
    assert float(row["start_s"]) == 0
    assert float(row["end_s"]) == pytest.approx(2.0, abs=0.5)
    assert 0 < float(row["probability"]) < 1
    assert row["most_probable"] in {"low", "middle", "high"}


def make_audioset(root: Path) -> None:
    (root / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/a,Rain\n")
    for split in ("balanced_train", "eval"):
        (root / f"{split}_segments.csv").write_text(f'{split}-1, 0.000, 10.000, "/m/a"\n')
        (root / f"{split}-1.wav").touch()


def make_esc50(root: Path) -> None:
    rows = [f"{fold}-a.wav,{fold},0,dog" for fold in range(1, 6)]
    for name in ("audio", "meta"):
        (root / name).mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,target,category", *rows]))
    for fold in range(1, 6):
        (root / "audio" / f"{fold}-a.wav").touch()


def make_speech_commands(root: Path) -> None:
    (root / "yes").mkdir()
    for name in ("a", "b", "c"):
        (root / "yes" / f"{name}.wav").touch()
    (root / "validation_list.txt").write_text("yes/b.wav\n")
    (root / "testing_list.txt").write_text("yes/c.wav\n")


def make_folders(root: Path) -> None:
    (root / "owl").mkdir()
    for number in range(6):
        (root / "owl" / f"{number}.wav").touch()


MADE: dict[str, Callable[[Path], None]] = {
    "audioset_one_gpu": make_audioset,
    "esc10": make_esc50,
    "own_recordings": make_folders,
    "spoken_words": make_speech_commands,
}
"""Writers of a data set for each recipe."""


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipe_parses_and_finds_its_splits_in_a_data_set_of_its_kind(recipe: Path, tmp_path: Path) -> None:
    MADE[recipe.stem](tmp_path)
    settings = parse_settings(RunSettings, "", ["--recipe", str(recipe), "--data.source", str(tmp_path)])
    manifest, _ = list_clips(settings.data, tmp_path, settings.shards)
    assert not missing_splits(settings.data, tmp_path, {clip.split for clip in manifest.clips})
    assert all(clip.path for clip in manifest.clips)
    assert settings.run_dir == Path("work", recipe.stem).absolute()
    assert f"--recipe examples/recipes/{recipe.name} " in recipe.read_text().splitlines()[1]


def test_there_is_a_recipe_for_each_kind_of_data_set() -> None:
    assert {path.stem for path in RECIPES} == set(MADE)
