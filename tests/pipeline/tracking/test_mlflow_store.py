"""The tracking store on a new sqlite file: resumed runs, metrics logged exactly once, an unreachable tracker."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from conftest import NewStore
from mlflow import MlflowClient
from mlflow.experiments import commands as mlflow_experiments

from ast_core.errors import UserError
from pipeline.tracking import metrics_follower, mlflow_store, runs


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 1 / epoch, "test_mAP": 0.1 * epoch, "seconds": 2.0}


def write_rows(path: Path, epochs: int) -> None:
    path.write_text("".join(json.dumps(row(epoch)) + "\n" for epoch in range(1, epochs + 1)), encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path, new_store: NewStore) -> str:
    uri = new_store(tmp_path / "store")
    mlflow_store.open_store(uri)
    return uri


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask an unreachable tracker once; a request with retries takes seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_a_call_with_the_same_tags_resumes_the_run(store: str) -> None:
    params = {"optim": {"epochs": 3}, "long": "x" * 900}
    with runs.start_run("e", "train", params, {"folder": "a"}) as first:
        pass
    with runs.start_run("e", "train", {"optim": {"epochs": 5}}, {"folder": "a"}) as again:
        pass
    with runs.start_run("e", "train", params, {"folder": "b"}) as other:
        pass
    assert first == again != other
    data = mlflow.get_run(first).data
    assert (data.params["optim.epochs"], data.tags["changed.optim.epochs"]) == ("3", "5")
    assert len(data.params["long"]) == 500


def test_numbers_of_variants_with_any_name_are_logged(store: str) -> None:
    with runs.start_run("test", "study", {}, {}) as run_id:
        runs.log_metrics(run_id, {"learning_rate=0.001,epochs=5.mean": 0.5, "a+b.std": 0.25, "not.there": float("nan")})
    logged = MlflowClient().get_run(run_id).data.metrics
    assert logged == {"learning_rate:0.001 epochs:5.mean": 0.5, "a b.std": 0.25}


def test_a_run_that_raises_has_the_status_failed(store: str) -> None:
    with pytest.raises(KeyError), runs.start_run("e", "fails", {}, {}) as run_id:
        raise KeyError
    assert mlflow.get_run(run_id).info.status == "FAILED"


def test_each_epoch_is_logged_once_over_resumes(store: str, tmp_path: Path) -> None:
    history = tmp_path / "metrics.jsonl"
    for epochs in (2, 2, 5):
        with (
            runs.start_run("e", "train", {}, {"folder": "a"}) as run_id,
            metrics_follower.MetricsFollower(run_id, history, 0.05),
        ):
            write_rows(history, epochs)
    values = MlflowClient().get_metric_history(run_id, "train_loss")
    assert [(m.step, m.value) for m in values] == [(epoch, 1 / epoch) for epoch in range(1, 6)]
    assert values[1].timestamp - values[0].timestamp == 2000


def test_epochs_written_while_the_tracker_is_away_are_logged_later(
    store: str, no_retries: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = tmp_path / "metrics.jsonl"
    database = Path(store.removeprefix("sqlite:///"))
    with runs.start_run("e", "train", {}, {"folder": "a"}) as run_id:
        follower = metrics_follower.MetricsFollower(run_id, history, 0.05)
        write_rows(history, 1)
        follower._catch_up()
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        write_rows(history, 3)
        follower._catch_up()
        follower._catch_up()
        assert capsys.readouterr().err.count("epochs are not logged for now") == 1
        mlflow.set_tracking_uri(store)
        follower._catch_up()
    assert database.is_file()
    assert [m.step for m in MlflowClient().get_metric_history(run_id, "test_mAP")] == [1, 2, 3]


def test_a_tracker_that_does_not_answer_does_not_stop_a_run(
    no_retries: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow_store.open_store("http://127.0.0.1:9")
    write_rows(tmp_path / "metrics.jsonl", 2)
    history = tmp_path / "metrics.jsonl"
    with runs.start_run("e", "train", {}, {}) as run_id, metrics_follower.MetricsFollower(run_id, history):
        runs.log_metrics(run_id, {"a": 1.0})
        runs.log_artifacts(run_id, tmp_path / "metrics.jsonl")
    assert run_id == ""
    assert "could not be started" in capsys.readouterr().err


def test_a_damaged_store_raises_an_error_with_its_address(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    with pytest.raises(UserError, match="cannot be opened"):
        mlflow_store.open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_a_deleted_experiment_is_an_error_with_the_command_that_restores_it(store: str) -> None:
    with runs.start_run("e", "train", {}, {}):
        pass
    experiment = MlflowClient().get_experiment_by_name("e")
    assert experiment is not None
    MlflowClient().delete_experiment(experiment.experiment_id)
    command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    with pytest.raises(UserError, match=command):
        runs.open_experiment(store, "e")
    with pytest.raises(UserError, match=command), runs.start_run("e", "train", {}, {}):
        pytest.fail("the training started")
    restored = CliRunner().invoke(mlflow_experiments, command.split()[2:])
    assert restored.exit_code == 0, restored.output
    with runs.start_run("e", "train", {}, {}) as run_id:
        assert run_id


def test_a_folder_keeps_its_id(tmp_path: Path) -> None:
    first = runs.folder_id(tmp_path / "a")
    assert runs.folder_id(tmp_path / "a") == first != runs.folder_id(tmp_path / "b")
