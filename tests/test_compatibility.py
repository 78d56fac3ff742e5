"""Runs and registered models of the code before the modules moved into folders: the current code goes on with them.

`fixtures/old_run.tar.xz` holds them; `fixtures/make_old_run.py` says how they were made.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from soundfile import read as read_sound

from ast_core.config import AugmentConfig, DataConfig, FrontEndConfig, Job, ModelConfig, OptimConfig
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST, BACKBONES, Backbone
from ast_core.serialization import from_dict
from ast_core.training import augment
from ast_core.training.trainer import fit, is_finished
from ast_core.weights.bundle import Bundle
from pipeline.cli.stages import PredictSettings, ReportSettings
from pipeline.predict import predict
from pipeline.report import report

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = Path(__file__).with_name("fixtures") / "old_run.tar.xz"
LABELS = ("low", "middle", "high")
MODEL = "models:/old-tagger@champion"


@pytest.fixture
def old(tmp_path: Path, monkeypatch) -> Path:
    """Return the old run's folder, with the paths in its MLflow database set to where it is now."""
    with tarfile.open(ARCHIVE) as file:
        file.extractall(tmp_path, filter="data")
    move_store(tmp_path / "mlflow.db", expected(tmp_path)["root"], str(tmp_path))
    monkeypatch.setitem(BACKBONES, "ast_nano", Backbone(**expected(tmp_path)["backbone"]))
    return tmp_path


def move_store(database: Path, before: str, after: str) -> None:
    """Replace a prefix in all text columns of a sqlite database."""
    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = connection.execute(f"PRAGMA table_info('{table}')").fetchall()
            for column in (row[1] for row in columns if str(row[2]).startswith(("VARCHAR", "TEXT"))):
                connection.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                    (before, after, before),
                )
    connection.close()


def expected(old: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((old / "expected.json").read_text())
    return values


def job_of(old: Path, seed: int) -> Job:
    """Return the training of a member, from the settings that the old train stage wrote."""
    member = old / "members" / f"seed-{seed}"
    settings = json.loads((member / "run.json").read_text())["settings"]
    return Job(
        folder=member,
        shards=old / "shards",
        seed=seed,
        data=from_dict(DataConfig, settings["data"]),
        front_end=from_dict(FrontEndConfig, settings["front_end"]),
        model=from_dict(ModelConfig, settings["model"]),
        augment=from_dict(AugmentConfig, settings["augment"]),
        optim=from_dict(OptimConfig, settings["optim"]),
    )


def processor() -> str:
    """As `make_old_run.processor`: what the bits of a matrix product depend on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else ""
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def project_by_convolution(model: AST, fbank_BTM: torch.Tensor) -> torch.Tensor:
    """Return the patches' projections, [B, P, E], as the old code computed them also for patches without overlap."""
    projected: torch.Tensor = model.patch_proj(fbank_BTM.transpose(1, 2).unsqueeze(1))
    return projected.flatten(2).transpose(1, 2)


def add_noise_clip_by_clip(normal_BTM: torch.Tensor, draws: augment.DrawTensors) -> torch.Tensor:
    """Add the noise that the old code drew: a generator for each clip."""
    for fbank_TM, scale, seed in zip(normal_BTM, draws.noise_scale_B, draws.noise_seed_B, strict=True):
        generator = torch.Generator().manual_seed(int(seed))
        fbank_TM.add_(torch.rand(fbank_TM.shape, generator=generator) * scale)
    return normal_BTM


@pytest.mark.parametrize("as_before", [False, True])
def test_an_old_training_resumes_and_ends_with_the_bits_that_the_old_code_gave_it(
    old: Path, monkeypatch, as_before: bool
) -> None:
    if as_before:
        monkeypatch.setattr(AST, "_embed_patches", project_by_convolution)
        monkeypatch.setattr(augment, "_add_noise_", add_noise_clip_by_clip)
    job, wanted = job_of(old, 1), expected(old)
    before = (job.folder / "metrics.jsonl").read_text()
    assert not is_finished(job)
    fit(job, 0, 1, torch.device("cpu"))
    assert is_finished(job)
    text = (job.folder / "metrics.jsonl").read_text()
    assert text.startswith(before), "the first epoch was trained again"
    for row, own in zip(map(json.loads, text.splitlines()), wanted["resumed"]["curve"], strict=True):
        assert row.keys() == own.keys()
        assert row["step"] == own["step"]
        assert math.isclose(row["train_loss"], own["train_loss"], rel_tol=1e-3)
    paths = sorted((job.folder / "epochs").glob("epoch-*/*.safetensors"))
    hashes = {str(path.relative_to(job.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert hashes.keys() == wanted["resumed"]["sha256"].keys()
    # Matrix products have other bits on another processor or in another release of torch. The projection of the patches
    # sums in another order today, and the noise has other values; everything else has the same bits.
    if as_before and (torch.__version__, processor()) == (wanted["torch"], wanted["processor"]):
        assert hashes == wanted["resumed"]["sha256"]


def test_an_old_training_that_ended_is_finished(old: Path) -> None:
    assert is_finished(job_of(old, 0))


def test_an_old_bundle_predicts_what_it_did(old: Path) -> None:
    wave_N, _ = read_sound(old / "tone.wav", dtype="float32")
    scores_C = Predictor(Bundle.load(old / "bundles" / "seed-0")).probabilities(wave_N)
    assert np.abs(scores_C - expected(old)["bundle"]).max() < 1e-6


def test_predict_tags_with_a_model_that_the_old_code_registered(old: Path) -> None:
    tone = old / "tone.wav"
    summary = predict(PredictSettings(inputs=(str(tone),), model=MODEL, tracking=f"sqlite:///{old}/mlflow.db"))
    assert np.abs(summary.probabilities[str(tone)] - expected(old)["registered"]).max() < 1e-6


SERVE = """
import json, sys
{first}
import mlflow, pandas
mlflow.set_tracking_uri(f"sqlite:///{{sys.argv[1]}}/mlflow.db")
mlflow.set_registry_uri(f"sqlite:///{{sys.argv[1]}}/mlflow.db")
model = mlflow.pyfunc.load_model("{model}")
with open(f"{{sys.argv[1]}}/tone.wav", "rb") as file:
    table = model.predict(pandas.DataFrame({{"audio": [file.read()]}}))
files = [sys.modules[name].__file__ for name in ("ast_core", "pipeline", "pipeline.serving")]
print(json.dumps([table[{labels}].iloc[0].tolist(), table["clip_error"].tolist(), files]))
"""


@pytest.mark.parametrize(
    ("first", "whose"),
    [
        pytest.param("", "its own copy", id="nothing-imported", marks=pytest.mark.long),  # no line of today's code
        pytest.param("import pipeline", "current", id="pipeline-imported", marks=pytest.mark.long),
        pytest.param("import ast_core.config, pipeline.cli.stages", "current", id="both-imported"),
    ],
)
def test_mlflow_loads_a_model_that_the_old_code_registered(old: Path, first: str, whose: str) -> None:
    program = SERVE.format(first=first, model=MODEL, labels=list(LABELS))
    done = subprocess.run([sys.executable, "-c", program, old], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores, errors, files = json.loads(done.stdout.splitlines()[-1])
    assert errors == [""]
    assert np.abs(np.array(scores) - expected(old)["registered"]).max() < 1e-6
    where = ROOT if whose == "current" else old / "mlflow-artifacts"
    assert all(Path(file).is_relative_to(where) for file in files), files


def test_report_shows_an_old_run(old: Path) -> None:
    page = report(
        ReportSettings(
            run_dir=old,
            shards=old / "shards",
            experiment="old",
            tracking=f"sqlite:///{old}/mlflow.db",
            data=job_of(old, 0).data,
        )
    ).read_text()
    for name, metrics in expected(old)["summary"].items():
        assert name in page
        assert f"{metrics['accuracy']:.4f}" in page
    assert "Hardest clips" in page
    assert "ast_nano" in page
