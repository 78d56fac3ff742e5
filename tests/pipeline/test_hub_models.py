"""Stages with models of the hub: training from them, resuming, predicting, exporting, and distilling from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from launches import training_flags
from local_hub import NAME, LocalHub, write_model
from prepared import LABELS, write_shards

import ast_core
from ast_core.errors import UserError
from ast_core.shards.reader import ShardReader
from ast_core.weights import checkpoint
from ast_core.weights.bundle import Bundle
from pipeline import predict, train
from pipeline.cli.command_line import parse_settings
from pipeline.cli.inputs import require_inputs
from pipeline.cli.stages import ExportSettings, PredictSettings, TrainSettings
from pipeline.export import export
from pipeline.scoring.distillation import score_teacher

SQUARE = [
    "--model.patch-time",
    "16",
    "--model.time-stride",
    "16",
    "--model.backbone",
    "ast_micro",
    "--augment.time-mask-frames",
    "4",
]


@pytest.fixture
def repository(hub: LocalHub, tmp_path: Path) -> str:
    """Return the commit of a small model on the hub."""
    return hub.add().commit_folder(write_model(tmp_path / "model"))


def training(folder: Path, epochs: int, *more: str) -> TrainSettings:
    flags = [*training_flags(folder, "run", epochs), *SQUARE, "--optim.average-first-epoch", "1"]
    return parse_settings(TrainSettings, "", [*flags, *more, "--workers", "1"])


def test_a_resumed_training_keeps_the_commit_that_its_first_launch_noted(
    hub: LocalHub, repository: str, tmp_path: Path, without_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "shards", {"train": 12, "test": 6})
    init = ("--model.init", f"hf:{NAME}", "--optim.learning-rate", "1e-12")
    member = train.train(training(tmp_path, 1, *init))
    assert f"hf:{NAME}@{repository}: its licence is on https://huggingface.co/{NAME}." in capsys.readouterr().out
    hub.add().commit_folder(write_model(tmp_path / "other", seed=1))
    train.train(training(tmp_path, 2, *init))
    newest, _ = checkpoint.read_newest(member / "checkpoints")
    assert newest is not None
    pinned = f"hf:{NAME}@{repository}"
    assert newest.state["identity"]["run"]["way_in"]["init"] == pinned
    noted = json.loads((member / "run.json").read_text())
    assert noted["settings"]["model"]["init"] == noted["initial_weights"]["address"] == pinned
    weights = checkpoint.read_tensors(newest.folder, "model")
    own = Bundle.load(tmp_path / "model").members[0].model.state_dict()
    assert all(np.allclose(value, own[key], atol=1e-6) for key, value in weights.items())  # this rate changes nothing
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = mlflow.MlflowClient().search_runs(["1"])
    sha256 = noted["initial_weights"]["sha256"]["model.safetensors"]
    assert run.data.params["model.init"] == pinned
    assert run.data.params["initial_weights.sha256.model.safetensors"] == sha256
    shutil.rmtree(tmp_path / "home")
    hub.stop()
    train.train(training(tmp_path, 2, *init))  # it is trained already, and needs no weights


def test_a_model_that_is_missing_stops_the_training_before_it_starts(
    hub: LocalHub, tmp_path: Path, without_ray: None
) -> None:
    write_shards(tmp_path / "shards", {"train": 12, "test": 6})
    with pytest.raises(UserError, match="hf:tests/nothing does not exist on the hub"):
        train.train(training(tmp_path, 1, "--model.init", "hf:tests/nothing"))
    assert not (tmp_path / "run" / "members").exists()


def test_predict_and_export_take_a_name(hub: LocalHub, repository: str, tmp_path: Path, save_tone) -> None:
    recording = save_tone(tmp_path / "tone.wav", seconds=0.3)
    settings = PredictSettings(
        inputs=(str(recording),), model=f"hf:{NAME}", output=str(tmp_path / "out.json"), gpus="no"
    )
    require_inputs(settings)
    predict.predict(settings)
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["probabilities"] == ast_core.load(tmp_path / "model", device="cpu").predict(recording)
    export(ExportSettings(output=tmp_path / "exported", model=f"hf:{NAME}@{repository}"))
    assert Bundle.load(tmp_path / "exported").labels == tuple(LABELS)


def test_a_name_that_the_hub_cannot_have_is_refused_when_the_flags_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'hf:a/b/c' names no model"):
        training(tmp_path, 1, "--model.init", "hf:a/b/c")
    with pytest.raises(UserError, match=r"'hf:\.\./x' names no model"):
        training(tmp_path, 1, "--distil.teacher", "hf:../x")
    with pytest.raises(UserError, match="'hf:a b' names no model"):
        require_inputs(parse_settings(PredictSettings, "", ["tone.wav", "--model", "hf:a b"]))
    with pytest.raises(UserError, match="'hf:a' names no model"):
        require_inputs(ExportSettings(output=tmp_path, model="hf:a"))


def test_a_model_of_the_hub_is_a_teacher(hub: LocalHub, repository: str, tmp_path: Path, without_ray: None) -> None:
    write_shards(tmp_path / "shards", {"train": 12, "test": 6})
    settings = training(tmp_path, 1, "--distil.teacher", f"hf:{NAME}", "--model.init", "scratch")
    path = score_teacher(settings)
    assert path is not None
    copy = tmp_path / "run" / "teacher" / "bundle"
    before, written = path.read_bytes(), (copy / "bundle.json").stat().st_mtime_ns
    hub.add().commit_folder(write_model(tmp_path / "other", seed=1))
    assert score_teacher(settings) == path
    assert path.read_bytes() == before
    assert (copy / "bundle.json").stat().st_mtime_ns == written
    assert len(ShardReader(tmp_path / "shards", ["train"])) == 12
    own, theirs = Bundle.load(copy), Bundle.load(tmp_path / "model")
    assert (own.labels, own.members[0].mean, own.members[0].loss) == (
        theirs.labels, theirs.members[0].mean, theirs.members[0].loss,
    )  # fmt: skip
