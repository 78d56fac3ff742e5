"""Trainings that are launched as a user does it, and whose driver is killed; what their MLflow run holds in the end."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from terminations import launch
from trainings import WORKER, epochs_of, rows_of, titled, wait


def kill_driver(folder: Path, run: str, epochs: int, rng: random.Random, *more: str) -> psutil.Process:
    """Launch a training, and kill it with all its processes once that many epochs are there.

    Returns:
        The rank that was stopped before, and still is if it has not ended with Ray's other processes.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    driver = launch(folder, run, environment, *more)
    member = folder / run / "members" / "seed-0"
    family: list[psutil.Process] = []
    sleeper: psutil.Process | None = None
    try:
        wait(lambda: epochs_of(member) >= epochs or driver.poll() is not None, f"epoch {epochs}")
        assert driver.poll() is None, (folder / f"{run}.log").read_text()
        time.sleep(rng.uniform(0, 0.3))
        family = psutil.Process(driver.pid).children(recursive=True)
        sleeper = rng.choice(titled(WORKER, family))
        sleeper.send_signal(signal.SIGSTOP)
        wait(lambda: sleeper.status() == psutil.STATUS_STOPPED, "the stop")
    finally:
        driver.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process != sleeper:
                    process.kill()
        driver.wait()
    return sleeper


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_notes(member: Path) -> int:
    """Empty every other file that Ray wrote for itself, cut the rest to halves, and return their number.

    No snapshot of checkpoints is among them, since the workers report none to Ray: one is put there, cut in its middle.
    """
    for run in (member / ".ray").iterdir():
        (run / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.50.0", "checkpoint_results": [{"che')
    notes = [path for path in (member / ".ray").rglob("*") if path.is_file()]
    assert len(notes) > 1
    for path, damage in zip(notes, itertools.cycle((_empty, _halve)), strict=False):
        damage(path)
    return len(notes)


def check_tracked(folder: Path, member: Path) -> None:
    """Check that all launches are one MLflow run, with every epoch once and the run's parameters."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.run_dir = '{member.parents[1]}'")
    assert run.info.status == "FINISHED"
    rows = rows_of(member)
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in history] == [int(row["epoch"]) for row in rows]
    assert [point.value for point in history] == pytest.approx([row["train_loss"] for row in rows])
    assert run.data.params["optim.batch_size"] == "6"
    assert run.data.tags["data_hash"] == "d"
