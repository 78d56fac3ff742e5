"""Registration of a run's bundles: once a bundle, the alias last, and what is served equals the bundle."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from ast_core.bundle import Bundle, write_bundle
from ast_core.config import FrontEndConfig, ModelConfig, to_dict
from ast_core.errors import DamagedError, UserError
from ast_core.files import write_json
from ast_core.model import AST
from pipeline import tracking
from pipeline.register import _example, register
from pipeline.serving import Tagger
from pipeline.settings import RegisterSettings

FRONT_END = FrontEndConfig(target_frames=32, num_mel_bins=16)
MODEL = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
LABELS = ["dog", "rain, heavy", "Zoé's $5"]

ELSEWHERE = """
import base64, json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import pandas, pipeline
frame = pandas.DataFrame({"audio": [base64.b64decode(sys.argv[3]), b"no audio"]})
print(json.dumps([pipeline.__file__, model.predict(frame).to_dict("list")]))
"""


def part(seed: int) -> tuple[str, dict[str, torch.Tensor], dict[str, object]]:
    torch.manual_seed(seed)
    model = AST(MODEL, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(LABELS))
    identity = {"model": to_dict(MODEL), "front_end": to_dict(FRONT_END), "labels": LABELS, "mean": -5.0, "std": 4.0}
    return f"seed-{seed}", model.state_dict(), {**identity, "loss": "bce"}


def write_run(folder: Path, seeds: tuple[int, ...] = (0, 1)) -> None:
    parts = [part(seed) for seed in seeds]
    for name, members in [*((p[0], [p]) for p in parts), ("ensemble", parts), (f"seed-{seeds[0]}-last", [parts[0]])]:
        facts = {"recipe": "test", "data_hash": "d", "seeds": list(seeds), "made_of": "epoch 1"}
        digest = write_bundle(folder / "bundles" / name, members, False, facts)
        scores = {"mAP": 0.5, "mAUC": 0.6, "d_prime": None, "chance_mAP": 0.3}
        clips = {"clips_listed": 9, "clips_evaluated": 8}
        evaluation = {"bundle_digest": digest, "split": "test", "metrics": scores, **clips}
        write_json(folder / "evaluation" / f"{name}.json", evaluation)


@pytest.fixture
def settings(tmp_path: Path) -> RegisterSettings:
    write_run(tmp_path / "run")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return RegisterSettings(run_dir=tmp_path / "run", tracking=uri, experiment="test", model_name="ast-test")


@pytest.mark.timeout(300)
def test_registered_models_are_whole_served_alike_and_not_doubled(settings: RegisterSettings, tmp_path: Path) -> None:
    expected = {"ast-test": 1, "ast-test-seed-0": 1, "ast-test-seed-1": 1}
    assert register(settings) == expected
    assert register(settings) == expected

    version = MlflowClient().get_model_version_by_alias("ast-test", "champion")
    local = Bundle.load(settings.run_dir / "bundles" / "ensemble")
    assert version.tags["bundle_digest"] == local.digest
    assert Bundle.load(tracking.fetch_bundle("models:/ast-test/1")).digest == local.digest
    assert "8 of the 9 clips" in version.description
    assert "mAP | 0.5" in version.description
    stored = tracking.fetch_bundle("models:/ast-test@champion").parents[1]
    assert not [path for path in stored.rglob("*") if path.suffix in {".pkl", ".pth", ".pt"}]

    served = _predict_elsewhere(settings.tracking, tmp_path)
    own = Tagger(settings.run_dir / "bundles" / "ensemble").predict(_example(16_000))
    for label in LABELS:
        assert served[label][0] == pytest.approx(own[label][0], abs=1e-6)
        assert np.isnan(served[label][1])
    assert (served["clip_error"][0], "decode" in served["clip_error"][1]) == ("", True)


def _predict_elsewhere(uri: str, folder: Path) -> dict[str, list[float]]:
    """The registered model's answer in a process that has only the model's own copy of the code."""
    audio = base64.b64encode(_example(16_000)["audio"][0]).decode()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ELSEWHERE, uri, "models:/ast-test@champion", audio],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, answer = json.loads(done.stdout.splitlines()[-1])
    assert Path(where).parent.parent.name == "code"
    return answer  # type: ignore[no-any-return]


def test_another_bundle_is_another_version(settings: RegisterSettings) -> None:
    register(settings)
    write_run(settings.run_dir, (0, 2))
    for path in (settings.run_dir / "bundles" / "seed-1").iterdir():
        path.unlink()
    assert register(settings) == {"ast-test": 2, "ast-test-seed-0": 1, "ast-test-seed-2": 1}
    assert int(MlflowClient().get_model_version_by_alias("ast-test", "champion").version) == 2


def test_the_alias_stays_where_the_upload_is_damaged(settings: RegisterSettings) -> None:
    register(settings)
    write_run(settings.run_dir, (3, 4))
    for seed in (0, 1):
        for path in (settings.run_dir / "bundles" / f"seed-{seed}").iterdir():
            path.unlink()
    weights = settings.run_dir / "bundles" / "ensemble" / "member-1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamagedError, match=r"member-1\.safetensors"):
        register(settings)
    assert int(MlflowClient().get_model_version_by_alias("ast-test", "champion").version) == 1


def test_a_bundle_that_was_not_evaluated_is_refused(settings: RegisterSettings) -> None:
    (settings.run_dir / "evaluation" / "ensemble.json").unlink()
    with pytest.raises(UserError, match="run evaluate"):
        register(settings)


def test_a_uri_without_a_model_is_one_sentence(settings: RegisterSettings) -> None:
    tracking.open_store(settings.tracking)
    mlflow.set_tracking_uri(settings.tracking)
    with pytest.raises(UserError, match="could not be fetched"):
        tracking.fetch_bundle("models:/nothing@champion")
