"""A tracking store that eight processes make at once: no metric lost, none doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import tracking

PROCESSES, ROWS = 8, 5
RACE = """
import json, os, sys
from pathlib import Path
from pipeline import tracking
uri, processes, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
gate, go = os.pipe()
children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(gate, 1)
        tracking.open_store(uri)
        history = Path(f"history-{number}.jsonl")
        with (
            tracking.start_run("race", str(number), {"a": {"b": number}}, {"who": str(number)}) as run_id,
            tracking.MetricsFollower(run_id, history, 0.02),
        ):
            assert run_id
            for epoch in range(1, rows + 1):
                with history.open("a") as file:
                    row = {"epoch": epoch, "loss": epoch / 7, "accuracy": number, "seconds": 1.0}
                    file.write(json.dumps(row) + "\\n")
                tracking.log_metrics(run_id, {f"final-{epoch}": epoch / 3})
        os._exit(0)
    children.append(child)
os.close(gate)
os.close(go)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""
"""Forks from one process that has MLflow already: they begin within a millisecond, which is the worst case."""


def steps_of(run_id: str, name: str) -> list[int]:
    return [metric.step for metric in MlflowClient().get_metric_history(run_id, name)]


@pytest.mark.timeout(240)
def test_eight_processes_on_a_fresh_store(tmp_path: Path, many, measured) -> None:
    lost, metrics = 0, 0
    for attempt in range(many(1, 5)):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        done = subprocess.run(
            [sys.executable, "-c", RACE, uri, str(PROCESSES), str(ROWS)],
            cwd=folder, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parents[1])},
        )  # fmt: skip
        assert json.loads(done.stdout.splitlines()[-1]) == [0] * PROCESSES, done.stderr
        assert "MLflow:" not in done.stderr
        tracking.open_store(uri)
        experiment = MlflowClient().get_experiment_by_name("race")
        assert experiment is not None
        assert experiment.artifact_location.startswith(folder.as_uri())
        runs = MlflowClient().search_runs([experiment.experiment_id])
        assert sorted(run.data.tags["who"] for run in runs) == [str(number) for number in range(PROCESSES)]
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            for name in ("loss", "accuracy", "epoch"):
                assert steps_of(run.info.run_id, name) == list(range(1, ROWS + 1))
            finals = [len(steps_of(run.info.run_id, f"final-{epoch}")) for epoch in range(1, ROWS + 1)]
            assert finals == [1] * ROWS
            metrics += 3 * ROWS + len(finals)
    measured("R17", processes=PROCESSES, stores=many(1, 5), metrics=metrics, lost=lost, doubled=0)
