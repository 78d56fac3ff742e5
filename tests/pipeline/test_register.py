"""Registration adds each bundle once, sets the alias last, and the served model equals the bundle."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from bundles import LABELS, write_run
from conftest import NewStore
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ast_core.errors import DamagedError, UserError
from ast_core.weights.bundle import Bundle
from ast_core.weights.decisions import Decisions
from pipeline.cli.stages import RegisterSettings
from pipeline.register import _example, register
from pipeline.tracking import mlflow_store, registry
from pipeline.tracking.pyfunc import Tagger

pytestmark = pytest.mark.slow

ELSEWHERE = """
import base64, json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import pandas, pipeline
frame = pandas.DataFrame({"audio": [base64.b64decode(sys.argv[3]), b"no audio"]})
print(json.dumps([pipeline.__file__, model.predict(frame).to_dict("list")]))
"""


@pytest.fixture
def evaluated(tmp_path: Path, new_store: NewStore) -> RegisterSettings:
    """Return settings that register the bundles of an evaluated run."""
    write_run(tmp_path / "run")
    return RegisterSettings(
        run_dir=tmp_path / "run", tracking=new_store(tmp_path), experiment="test", model_name="ast-test"
    )


@pytest.fixture
def settings(evaluated: RegisterSettings, monkeypatch: pytest.MonkeyPatch) -> RegisterSettings:
    """Return settings of an evaluated run whose models are uploaded without an example of their input.

    MLflow predicts the example with each model, which takes half of the time.
    """
    upload = mlflow.pyfunc.log_model
    monkeypatch.setattr(mlflow.pyfunc, "log_model", lambda **own: upload(**own | {"input_example": None}))
    return evaluated


@pytest.mark.timeout(300)
def test_registered_models_are_complete_predict_the_same_and_are_not_doubled(
    evaluated: RegisterSettings, tmp_path: Path
) -> None:
    settings = evaluated
    expected = {"ast-test": 1, "ast-test-seed-0": 1, "ast-test-seed-1": 1}
    assert register(settings) == expected
    assert register(settings) == expected

    version = MlflowClient().get_model_version_by_alias("ast-test", "champion")
    local = Bundle.load(settings.run_dir / "bundles" / "ensemble")
    assert version.tags["bundle_digest"] == local.digest
    assert Bundle.load(registry.fetch_bundle("models:/ast-test/1")).digest == local.digest
    assert "8 of the 9 clips" in version.description
    assert "mAP | 0.5" in version.description
    assert "mel bins, 10 ms per frame" in version.description  # MLflow's page keeps the line breaks of the text
    stored = registry.fetch_bundle("models:/ast-test@champion").parents[1]
    assert not [path for path in stored.rglob("*") if path.suffix in {".pkl", ".pth", ".pt"}]

    served = _predict_elsewhere(settings.tracking, tmp_path)
    own = Tagger(settings.run_dir / "bundles" / "ensemble").predict(_example(16_000))
    assert served["probabilities"][0] == pytest.approx(own["probabilities"][0], abs=1e-6)
    assert sorted(served["probabilities"][0]) == sorted(served["labels"][0]) == sorted(LABELS)
    assert served["probabilities"][1] is served["labels"][1] is None
    assert (served["error"][0], "decode" in served["error"][1]) == ("", True)


def _predict_elsewhere(uri: str, folder: Path) -> dict[str, list[Any]]:
    """Return the answer of the registered model in a process that has only the model's own copy of the code."""
    audio = base64.b64encode(_example(16_000)["audio"][0]).decode()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ELSEWHERE, uri, "models:/ast-test@champion", audio],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, answer = json.loads(done.stdout.splitlines()[-1])
    assert Path(where).parent.parent.name == "code"
    return answer  # type: ignore[no-any-return]


def champion(name: str = "ast-test") -> int:
    return int(MlflowClient().get_model_version_by_alias(name, "champion").version)


def replace_run(settings: RegisterSettings, seeds: tuple[int, ...], **values: Any) -> None:
    shutil.rmtree(settings.run_dir / "bundles")
    write_run(settings.run_dir, seeds, **values)


def test_only_a_better_version_on_the_same_clips_becomes_champion(settings: RegisterSettings, capsys) -> None:
    register(settings)
    replace_run(settings, (0, 2), score=0.5)
    assert register(settings) == {"ast-test": 2, "ast-test-seed-0": 1, "ast-test-seed-2": 1}
    assert champion() == 1
    assert int(MlflowClient().get_model_version_by_alias("ast-test", "challenger").version) == 2
    assert "ast-test: version 1 stays champion: 0.5000, this one 0.5000" in capsys.readouterr().out

    replace_run(settings, (0, 3), score=0.9, clips_of="others")
    register(settings)
    assert champion() == 1
    register(dataclasses.replace(settings, force=True))
    assert champion() == 3

    replace_run(settings, (0, 4), score=0.91, clips_of="others")
    assert register(settings)["ast-test"] == 4
    assert champion() == 4
    tags = MlflowClient().get_model_version("ast-test", "4").tags
    assert (tags["seeds"], tags["train_runs"], tags["score"]) == ("0, 4", "run-0, run-4", "0.91")


def test_a_version_that_was_not_tested_on_every_class_becomes_champion_only_by_force(
    settings: RegisterSettings, capsys
) -> None:
    for path in (settings.run_dir / "evaluation").glob("*.json"):
        result = json.loads(path.read_text())
        result["per_class"]["dog"]["positives"] = 0
        path.write_text(json.dumps(result))
    assert register(settings)["ast-test"] == 1
    assert registry.version_of_alias("ast-test", "champion") is None
    text = capsys.readouterr().out
    assert (
        "it is not champion: 1 of 3 classes have no clips in the test split ('dog'); --force promotes this one" in text
    )
    register(dataclasses.replace(settings, force=True))
    assert champion() == 1

    replace_run(settings, (0, 5), score=0.9)
    register(settings)
    assert champion() == 2


def test_a_version_without_its_files_is_registered_again_and_stays_no_champion(
    settings: RegisterSettings, capsys
) -> None:
    register(settings)
    gone = registry.fetch_bundle("models:/ast-test/1")
    shutil.rmtree(gone.parents[1])  # the artifacts of the model
    assert register(settings) == {"ast-test": 2, "ast-test-seed-0": 1, "ast-test-seed-1": 1}
    assert "ast-test version 1 lost its files" in capsys.readouterr().err
    assert champion() == 2

    registry.fetch_bundle("models:/ast-test/2").joinpath("member-0.safetensors").unlink()  # a part is enough
    assert register(settings)["ast-test"] == 3

    shutil.rmtree(registry.fetch_bundle("models:/ast-test@champion").parents[1])
    replace_run(settings, (0, 2), score=0.1)
    register(settings)
    assert champion() == 4  # a worse model, but one that can be used


def test_a_store_of_files_that_does_not_answer_costs_no_champion(settings: RegisterSettings, monkeypatch) -> None:
    register(settings)
    replace_run(settings, (0, 2), score=0.1)

    def list_artifacts(**_: str) -> None:
        raise MlflowException("503 Service Unavailable")

    monkeypatch.setattr(registry.mlflow.artifacts, "list_artifacts", list_artifacts)
    with pytest.raises(UserError, match=r"version 1 could not be listed: 503"):
        register(settings)
    assert champion() == 1


def test_new_thresholds_are_a_new_version_of_the_same_bundle(settings: RegisterSettings) -> None:
    register(settings)
    folder = settings.run_dir / "bundles" / "ensemble"
    threes = (1.0,) * 3
    Decisions(Bundle.load(folder).digest, {"split": "validation"}, False, threes, threes, threes).write(folder)
    assert register(settings)["ast-test"] == 2
    assert register(settings)["ast-test"] == 2
    assert champion() == 2
    assert Bundle.load(registry.fetch_bundle("models:/ast-test@champion")).decisions is not None


def test_a_variant_name_may_contain_characters_that_mlflow_forbids(settings: RegisterSettings) -> None:
    settings = dataclasses.replace(settings, model_name="ast-learning_rate=0.001,patch=16")
    assert set(register(settings).values()) == {1}
    stored = Bundle.load(registry.fetch_bundle(f"models:/{settings.model_name}@champion"))
    assert stored.digest == Bundle.load(settings.run_dir / "bundles" / "ensemble").digest


def test_a_damaged_upload_does_not_move_the_alias(settings: RegisterSettings) -> None:
    register(settings)
    replace_run(settings, (3, 4))
    weights = settings.run_dir / "bundles" / "ensemble" / "member-1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamagedError, match=r"member-1\.safetensors"):
        register(settings)
    assert int(MlflowClient().get_model_version_by_alias("ast-test", "champion").version) == 1


def test_a_bundle_that_was_not_evaluated_is_refused(settings: RegisterSettings) -> None:
    (settings.run_dir / "evaluation" / "ensemble.json").unlink()
    with pytest.raises(UserError, match="run evaluate"):
        register(settings)


def test_a_uri_without_a_model_is_refused_in_one_sentence(settings: RegisterSettings) -> None:
    mlflow_store.open_store(settings.tracking)
    mlflow.set_tracking_uri(settings.tracking)
    with pytest.raises(UserError, match="could not be fetched"):
        registry.fetch_bundle("models:/nothing@champion")
