"""`probe`: a bundle that predicts what the fit says, counts that balance, folds, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bundles import FRONT_END, write_run
from conftest import NewStore
from tones import RATE_HZ, write_tone

from ast_core.audio.waveform import load_waveform
from ast_core.config import DataConfig, PrepareConfig
from ast_core.errors import DamagedError, UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.adapted_member import adapt_member
from ast_core.weights.bundle import Bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import ProbeSettings, RegisterSettings, ReportSettings
from pipeline.combine import _remove_stale
from pipeline.probe import probe
from pipeline.probing.clip_embeddings import ClipEmbeddings
from pipeline.register import _candidates
from pipeline.report import report
from pipeline.run_folder.layout import RunFolder
from pipeline.scoring.results import EvaluationResult

CLASSES = ("low", "middle", "high")


def write_folders(folder: Path, clips: int, seconds: float = 0.3) -> Path:
    """Write a data set with a folder for each split and class."""
    for split in ("train", "validation", "test"):
        for label, name in enumerate(CLASSES):
            for n in range(clips if split == "train" else 3):
                write_tone(folder / split / name / f"{n}.wav", label, 1000 * label + 10 * n + len(split), seconds)
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an ensemble of two members with random weights, and the bundle of each."""
    folder = tmp_path_factory.mktemp("model")
    write_run(folder)
    return folder / "bundles"


@pytest.fixture
def settings(bundles: Path, tmp_path: Path, new_store: NewStore) -> ProbeSettings:
    return ProbeSettings(
        run_dir=tmp_path / "run", shards=tmp_path / "run" / "shards", tracking=new_store(tmp_path), experiment="test",
        gpus="no", model=str(bundles / "seed-0"), bootstrap=50,
        data=DataConfig(source=str(write_folders(tmp_path / "data", 5)), validation_split="validation"),
    )  # fmt: skip


def test_the_bundle_predicts_what_the_fit_says_and_a_second_run_changes_nothing(settings: ProbeSettings) -> None:
    result, run = probe(settings), RunFolder.of(settings)
    assert (result.loss, result.balanced, result.chosen_on) == ("cross_entropy", True, "the split validation")
    assert {split: use.used for split, use in result.splits.items()} == {"train": 15, "validation": 9, "test": 9}
    assert result.linear.metrics["accuracy"] == 1.0
    assert result.linear.intervals["accuracy"] == (1.0, 1.0)
    assert result.longer_than_window == 0

    bundle = Bundle.load(run.bundle("probe"))
    assert (bundle.labels, bundle.single_label, bundle.facts.role) == (tuple(sorted(CLASSES)), True, "probe")
    table, predictor = pq.read_table(run.scores("probe")), Predictor(bundle)
    assert table.num_rows == 9
    for row in table.to_pylist():
        waveform_N = load_waveform(Path(settings.data.source) / row["clip_id"], RATE_HZ)
        assert np.allclose(predictor.probabilities(waveform_N), row["scores"], atol=1e-5)

    evaluation = EvaluationResult.load(run.result("probe"))
    assert evaluation.bundle_digest == bundle.digest == result.bundle_digest
    assert (evaluation.clips_listed, evaluation.clips_evaluated) == (9, 9)
    assert set(evaluation.per_class) == set(CLASSES)
    assert run.per_class("probe").is_file()
    assert json.loads(run.summary.read_text())["probe"]["accuracy"] == 1.0
    stored = json.loads(run.probe_result.read_text())
    assert [trial["value"] for trial in stored["strength"]["tried"]] == [10, 1, 0.1, 0.01, 1e-3, 1e-4, 1e-5]

    before = sorted(path.name for path in run.embeddings.iterdir())
    assert probe(settings) == result
    assert sorted(path.name for path in run.embeddings.iterdir()) == before


def test_short_clips_have_a_hint_whose_window_makes_a_bundle_that_predicts_what_the_fit_says(
    settings: ProbeSettings, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write_folders(tmp_path / "short", 5, seconds=0.15)
    settings = replace(settings, data=replace(settings.data, source=str(short)))
    assert probe(settings).target_frames == 32
    hint = "33 of 33 clips are shorter than half of the model's window of 0.3 s: compare with --target-frames 16 and"
    assert hint in capsys.readouterr().out
    with pytest.raises(UserError, match="another target_frames: target_frames 32, not 16"):
        probe(replace(settings, target_frames=16))

    own = replace(settings, run_dir=tmp_path / "other", shards=tmp_path / "other" / "shards", target_frames=16)
    result, run = probe(own), RunFolder.of(own)
    assert (result.target_frames, result.longer_than_window) == (16, 0)
    assert "--target-frames" not in capsys.readouterr().out
    bundle = Bundle.load(run.bundle("probe"))
    member, (whole,) = bundle.members[0], Bundle.load(bundles / "seed-0").members
    assert member.front_end == replace(FRONT_END, target_frames=16)
    assert torch.equal(member.model.pos_embed, adapt_member(whole, 16).model.pos_embed)
    predictor = Predictor(bundle)
    for row in pq.read_table(run.scores("probe")).to_pylist():
        assert np.allclose(
            predictor.probabilities(load_waveform(short / row["clip_id"], RATE_HZ)), row["scores"], atol=1e-5
        )


def test_several_labels_and_a_member_of_an_ensemble(settings: ProbeSettings, bundles: Path, tmp_path: Path) -> None:
    rows = ["path,labels,split"]
    for split in ("train", "test"):
        for n in range(12):
            path = write_tone(tmp_path / "clips" / f"{split}-{n}.wav", n % 3, n)
            rows.append(f"{path.name},{CLASSES[n % 3]}{';even' if n % 2 == 0 else ''},{split}")
    (tmp_path / "clips" / "test-0.wav").write_bytes(b"RIFF")
    (tmp_path / "clips" / "test-1.wav").unlink()
    (tmp_path / "clips" / "list.csv").write_text("\n".join(rows))
    own = replace(
        settings, model=str(bundles / "ensemble"), member="seed-1", prepare=PrepareConfig(max_reject_share=0.1),
        data=DataConfig(source=str(tmp_path / "clips" / "list.csv")),
    )  # fmt: skip
    result = probe(own)
    test = result.splits["test"]
    assert (test.listed, test.used, test.rejected, test.missing) == (12, 10, 1, 1)
    assert result.loss == "bce"
    assert "accuracy" not in result.linear.metrics
    assert result.chosen_on == "5 folds of the training clips"
    bundle = Bundle.load(RunFolder.of(own).bundle("probe"))
    assert ([member.loss for member in bundle.members], bundle.single_label) == (["bce"], False)
    assert bundle.members[0].front_end == FRONT_END
    with pytest.raises(UserError, match="has 2 members, and each has embeddings of its own"):
        probe(replace(own, member=""))
    with pytest.raises(UserError, match="embeddings with another model, member"):
        probe(replace(own, model=str(bundles / "seed-0"), member=""))
    with pytest.raises(UserError, match="1 of 23 clips were rejected, more than prepare"):
        probe(replace(own, prepare=PrepareConfig(), data=replace(own.data, train_splits=("test",), test_split="train")))
    with pytest.raises(UserError, match="--loss is cross_entropy, but 12 clips do not have exactly one label"):
        probe(replace(own, loss="cross_entropy"))


def test_each_fold_is_held_out_once(settings: ProbeSettings, tmp_path: Path) -> None:
    rows = ["filename,fold,target,category"]
    for fold in (1, 2, 3):
        for n in range(6):
            name = f"{fold}-{n}.wav"
            write_tone(tmp_path / "esc" / "audio" / name, n % 3, 10 * fold + n)
            rows.append(f"{name},{fold},{n % 3},{CLASSES[n % 3]}")
    (tmp_path / "esc" / "meta").mkdir()
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join(rows))
    data = DataConfig(source=str(tmp_path / "esc"), train_splits=("fold1", "fold2"), test_split="fold3")
    result = probe(replace(settings, data=data, cross_validate=True))
    assert result.chosen_on == "2 folds of the training clips"
    assert result.folds is not None
    assert set(result.folds.folds) == {"fold1", "fold2", "fold3"}
    assert result.folds.linear.clips == 18
    assert 0 < result.folds.mean["linear probe"] <= 1
    alone = result.folds.folds["fold3"]
    assert (alone.strength, alone.linear) == (result.strength.value, result.linear.metrics)
    with pytest.raises(UserError, match=r"fold3 is in data\.train-splits, and is also data\.test-split"):
        probe(replace(settings, data=replace(data, train_splits=("fold1", "fold2", "fold3"))))


def test_a_class_without_a_training_clip_and_another_data_set_are_refused(
    settings: ProbeSettings, tmp_path: Path
) -> None:
    for path in (Path(settings.data.source) / "train" / "high").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="The training splits train have no usable clip of the class high"):
        probe(settings)
    other = replace(settings.data, source=str(write_folders(tmp_path / "other", 2)))
    with pytest.raises(UserError, match=r"holds embeddings of the data set .*data.*, not of .*other"):
        probe(replace(settings, data=other))
    with pytest.raises(UserError, match="Cross-validation needs three folds or more"):
        probe(replace(settings, cross_validate=True))


def test_combine_keeps_the_bundle_and_register_takes_it(settings: ProbeSettings) -> None:
    probe(settings)
    run = RunFolder.of(settings)
    _remove_stale(run.bundles, [])
    assert run.main_bundle() == "probe"
    named = replace(parse_register(settings), model_name="ast-own")
    assert [own.name for own in _candidates(named, run)] == ["ast-own-probe", "ast-own"]
    write_run(run.path, (0,))
    assert run.main_bundle() == "seed-0"
    assert [own.name for own in _candidates(named, run)] == ["ast-own-seed-0", "ast-own-probe", "ast-own"]


def test_the_report_of_a_probe_needs_no_shards(settings: ProbeSettings) -> None:
    probe(settings)
    own = ReportSettings(
        run_dir=settings.run_dir, shards=settings.shards, tracking=settings.tracking, experiment="test",
        data=settings.data,
    )  # fmt: skip
    page = report(own).read_text()
    assert "log-mel of the model: mean -5.0000, standard deviation 4.0000" in page
    assert re.search(r"<td>test</td><td>9</td><td>9</td><td>0</td><td>0</td>", page)
    assert '<tr class="main"><td>probe</td><td>1.0000</td>' in page
    RunFolder.of(settings).probe_result.write_text("{}")
    with pytest.raises(DamagedError, match="not as probe writes it"):
        report(own)


def parse_register(settings: ProbeSettings) -> RegisterSettings:
    return RegisterSettings(run_dir=settings.run_dir, tracking=settings.tracking, experiment="test")


def test_the_recipe_of_a_model_does_not_change_which_model_is_used(tmp_path: Path) -> None:
    flags = ["--recipe", "esc50", "--model", "some/bundle", "--run-dir", str(tmp_path)]
    own = parse_settings(ProbeSettings, "", flags)
    assert (own.model, own.data.test_split, own.embeddings) == ("some/bundle", "fold5", "")


def test_embeddings_in_a_temporary_file_are_the_same(settings: ProbeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = probe(settings)
    monkeypatch.setattr("pipeline.probing.clip_embeddings.MOST_IN_MEMORY", 0)
    held: list[type] = []
    read = ClipEmbeddings.read

    def note_and_read(self: ClipEmbeddings, rows_B: np.ndarray) -> np.ndarray:
        held.append(type(self.matrix))
        return read(self, rows_B)

    monkeypatch.setattr(ClipEmbeddings, "read", note_and_read)
    assert probe(settings) == in_memory
    assert set(held) == {np.memmap}


def test_a_file_that_embed_did_not_write_is_refused(settings: ProbeSettings) -> None:
    probe(settings)
    part = next(RunFolder.of(settings).embeddings.glob("*.parquet"))
    pq.write_table(pq.read_table(part).drop_columns(["embedding"]), part)
    with pytest.raises(UserError, match="was not written by embed for this model: its column embedding is missing"):
        probe(settings)


def test_a_stage_that_takes_no_section_of_a_recipe_is_parsed(tmp_path: Path) -> None:
    own = parse_settings(RegisterSettings, "", ["--recipe", "esc50", "--run-dir", str(tmp_path)])
    assert own.model_name == "ast-esc50"
