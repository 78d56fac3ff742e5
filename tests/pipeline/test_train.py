"""Training under Ray Train: two workers, kills, and errors as one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
from mlflow import MlflowClient
from prepared import BINS, FRAMES, write_shards

from ast_core.errors import UserError
from ast_core.files import sha256_of
from pipeline.settings import TrainSettings, parse
from pipeline.train import train

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 30


def flags(folder: Path, run: str, *more: str) -> list[str]:
    """A run of a few seconds on two workers, with a checkpoint at every other step."""
    text = f"""
    --recipe esc50_small --run-dir {folder / run} --shards {folder / "shards"} --workers 2
    --tracking sqlite:///{folder / "mlflow.db"} --experiment test --data.train-splits train --data.test-split test
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    --model.patch-freq {BINS} --model.freq-stride {BINS}
    --augment.freq-mask-bins 4 --augment.time-mask-frames 8
    --optim.epochs {EPOCHS} --optim.batch-size 6 --optim.checkpoint-every-steps 2 --optim.average-first-epoch 2
    """
    return [*text.split(), *more]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    return tmp_path


@pytest.mark.timeout(400)
def test_after_a_kill_the_same_command_ends_with_the_same_weights(folder: Path, ray_session) -> None:
    whole = train(parse(TrainSettings, "", flags(folder, "whole")))
    killed = folder / "killed" / "members" / "seed-0"
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *flags(folder, "killed")]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        _wait_for_epochs(killed, 3, driver)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    at_kill = len((killed / "metrics.jsonl").read_text().splitlines())
    assert 3 <= at_kill < EPOCHS
    train(parse(TrainSettings, "", flags(folder, "killed")))

    for epoch in (at_kill + 1, EPOCHS):
        path = Path("epochs") / f"epoch-{epoch:04d}" / "model.safetensors"
        assert sha256_of(killed / path) == sha256_of(whole / path)
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    _check_tracked(folder, killed, rows)


def _wait_for_epochs(member: Path, epochs: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not (member / "epochs" / f"epoch-{epochs:04d}" / "COMMITTED.json").is_file():
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _check_tracked(folder: Path, member: Path, rows: list[dict[str, float]]) -> None:
    """Both launches are one MLflow run, with every epoch once and what the run was."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    filter_string = f"tags.run_dir = '{member.parents[1]}'"
    (run,) = client.search_runs([experiment.experiment_id], filter_string)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in history] == [int(row["epoch"]) for row in rows]
    assert [point.value for point in history] == pytest.approx([row["train_loss"] for row in rows])
    assert run.data.params["optim.batch_size"] == "6"
    assert run.data.tags["data_hash"] == "d"


@pytest.mark.timeout(240)
def test_a_loss_that_is_not_finite_is_one_sentence_from_the_workers(folder: Path, ray_session) -> None:
    write_shards(folder / "shards", {"train": 42, "test": 21}, broken=("train-7",))
    with pytest.raises(UserError, match=r"Step \d+ of seed-0 is not finite.*train-7\b") as caught:
        train(parse(TrainSettings, "", flags(folder, "nan", "--data.mean", "-6", "--data.std", "4")))
    assert "Traceback" not in str(caught.value)


def test_a_second_launch_in_the_same_folder_is_refused(folder: Path, ray_session) -> None:
    settings = parse(TrainSettings, "", flags(folder, "held"))
    member = settings.run_dir / "members" / "seed-0"
    member.mkdir(parents=True)
    with filelock.FileLock(member / ".lock"), pytest.raises(UserError, match="is being trained by"):
        train(settings)


def test_without_shards_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepare"):
        train(parse(TrainSettings, "", flags(tmp_path, "none")))
