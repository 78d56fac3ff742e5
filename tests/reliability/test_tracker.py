"""A tracking store that eight processes create at once, and a killed server: each metric is logged exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from launches import training_flags
from mlflow import MlflowClient
from prepared import write_shards
from servers import LocalTracker
from trainings import fit_without_ray

from pipeline import train
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.reporting.history import read_history
from pipeline.tracking import metrics_follower, mlflow_store, runs

pytestmark = pytest.mark.slow

PROCESSES, ROWS, EPOCHS = 8, 5, 10
WAIT_S = 300
RACE = """
import json, os, sys
from pathlib import Path
from pipeline.tracking import metrics_follower, mlflow_store, runs
uri, processes, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
gate, go = os.pipe()
children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(gate, 1)
        mlflow_store.open_store(uri)
        history = Path(f"history-{number}.jsonl")
        with (
            runs.start_run("race", str(number), {"a": {"b": number}}, {"who": str(number)}) as run_id,
            metrics_follower.MetricsFollower(run_id, history, 0.02),
        ):
            assert run_id
            for epoch in range(1, rows + 1):
                with history.open("a") as file:
                    row = {"epoch": epoch, "loss": epoch / 7, "accuracy": number, "seconds": 1.0}
                    file.write(json.dumps(row) + "\\n")
                runs.log_metrics(run_id, {f"final-{epoch}": epoch / 3})
        os._exit(0)
    children.append(child)
os.close(gate)
os.close(go)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""
"""Program that imports MLflow and then forks: the children start within a millisecond, which is the worst case."""


def read_steps(run_id: str, name: str) -> list[int]:
    return [metric.step for metric in MlflowClient().get_metric_history(run_id, name)]


@pytest.mark.timeout(240)
def test_eight_processes_that_create_a_store_at_once_lose_no_metric(tmp_path: Path, many, measured) -> None:
    lost, metrics = 0, 0
    for attempt in range(many(1, 5)):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        done = subprocess.run(
            [sys.executable, "-c", RACE, uri, str(PROCESSES), str(ROWS)],
            cwd=folder, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(mlflow_store.__file__).parents[2])},
        )  # fmt: skip
        assert json.loads(done.stdout.splitlines()[-1]) == [0] * PROCESSES, done.stderr
        assert "MLflow:" not in done.stderr
        mlflow_store.open_store(uri)
        experiment = MlflowClient().get_experiment_by_name("race")
        assert experiment is not None
        assert experiment.artifact_location.startswith(folder.as_uri())
        found = MlflowClient().search_runs([experiment.experiment_id])
        assert sorted(run.data.tags["who"] for run in found) == [str(number) for number in range(PROCESSES)]
        assert {run.info.status for run in found} == {"FINISHED"}
        for run in found:
            for name in ("loss", "accuracy", "epoch"):
                assert read_steps(run.info.run_id, name) == list(range(1, ROWS + 1))
            finals = [len(read_steps(run.info.run_id, f"final-{epoch}")) for epoch in range(1, ROWS + 1)]
            assert finals == [1] * ROWS
            metrics += 3 * ROWS + len(finals)
    measured("R17", processes=PROCESSES, stores=many(1, 5), metrics=metrics, lost=lost, doubled=0)


def wait_for(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.timeout(600)
def test_a_training_whose_tracker_is_killed_ends_with_the_same_weights_and_loses_no_metric(
    tmp_path: Path, tracker: LocalTracker, without_ray, measured, capfd: pytest.CaptureFixture[str]
) -> None:
    """Check the weights and the metrics; only the driver knows the tracker, so the ranks need no Ray."""
    write_shards(tmp_path / "shards", {"train": 42, "test": 9})
    without, flags = ([*training_flags(tmp_path, name, EPOCHS), "--workers", "1"] for name in ("without", "with"))
    flags[flags.index("--tracking") + 1] = tracker.uri
    mlflow_store.open_store(tracker.uri)
    history, own = tmp_path / "with/members/seed-0/metrics.jsonl", tmp_path / "own.jsonl"

    # The rows of another training, which still runs when the server is back.
    with runs.start_run("test", "own", {}, {"folder": "own"}) as own_run:
        follower = metrics_follower.MetricsFollower(own_run, own, 0.1)
        with follower:
            write_rows(own, 2)
            training = threading.Thread(target=train.main, args=[flags])
            training.start()
            wait_for(lambda: len(read_history(history)) >= 2, "the training finished no epoch")
            tracker.kill()
            seen = len(read_history(history))
            assert seen < EPOCHS, "the training was over before the tracker was killed"
            write_rows(own, 4)
            wait_for(lambda: not training.is_alive(), "the training waits for the tracker")
            assert len(read_history(history)) == EPOCHS
            assert "epochs are not logged for now" in capfd.readouterr().err
            fit_without_ray(parse_settings(TrainSettings, None, without))
            assert read_weights(tmp_path / "with") == read_weights(tmp_path / "without")
            tracker.start()
            wait_for(lambda: len(read_steps(own_run, "loss")) == 4, "no epochs were logged after the tracker was back")
            write_rows(own, 5)
    assert read_steps(own_run, "loss") == [1, 2, 3, 4, 5]

    train.main(flags)  # the training is complete; only the missing metrics are logged
    experiment = MlflowClient().get_experiment_by_name("test")
    assert experiment is not None
    found = MlflowClient().search_runs([experiment.experiment_id], "tags.stage = 'train'")
    assert [run.info.status for run in found] == ["FINISHED"]
    rows = read_history(history)
    counted: Counter[str] = Counter()
    for name in (key for key, value in rows[0].items() if isinstance(value, int | float)):
        logged = MlflowClient().get_metric_history(found[0].info.run_id, name)
        # MLflow stores infinity, the d' of perfect scores, as the largest float.
        expected = [(row["epoch"], min(row[name], sys.float_info.max)) for row in rows]
        assert [(metric.step, metric.value) for metric in logged] == expected, name
        counted["metrics"] += len(logged)
    mlflow.set_tracking_uri("")
    measured(
        "R18",
        server_kills=tracker.kills,
        epochs_while_away=EPOCHS - seen + 2,
        metrics=counted["metrics"],
        lost=0,
        doubled=0,
    )


def write_rows(path: Path, epochs: int) -> None:
    lines = (json.dumps({"epoch": epoch, "loss": 1 / epoch, "seconds": 2.0}) for epoch in range(1, epochs + 1))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_weights(run: Path) -> dict[str, bytes]:
    """Read the weights of every epoch by name."""
    files = sorted((run / "members" / "seed-0" / "epochs").glob("*/*.safetensors"))
    assert files
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}
