"""The driver is killed, and what Ray noted for itself is emptied, or cut to halves: the same command goes on.

Each time one rank is stopped before, and so outlives all that could end it; it wakes when its successors are done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launches import ROOT, training_flags
from mlflow import MlflowClient
from trainings import EPOCHS, WORKER, epochs_of, gone, outcome, rows_of, titled, trained, wait

from ast_core.storage import writer_fence

pytestmark = pytest.mark.xdist_group("ray_faults")


def halve(path: Path) -> None:
    """Keep the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Keep nothing of a file."""
    os.truncate(path, 0)


def kill_driver(folder: Path, run: str, epochs: int, rng: random.Random) -> psutil.Process:
    """Launch a training as a user does, and kill it with all its processes once that many epochs are there.

    The driver's temporary folder has a long path, so that Ray works below a short link to it.

    Returns:
        The rank that was stopped before, and still is.
    """
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *training_flags(folder, run, EPOCHS)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    temporary = folder / ("x" * 100)  # too long for Ray's sockets
    temporary.mkdir(exist_ok=True)
    environment["TMPDIR"] = str(temporary)
    with (folder / f"{run}.log").open("ab") as log:
        driver = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
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
        assert list(temporary.glob("ray/session_2*"))
    finally:
        driver.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process != sleeper:
                    process.kill()
        driver.wait()
    return sleeper


def damage(member: Path) -> int:
    """Empty every other file that Ray left of its own, and cut the rest to halves; how many there were.

    No snapshot of checkpoints is among them, since the workers tell Ray of none: one is put there, cut in its middle.
    """
    for run in (member / ".ray").iterdir():
        (run / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.50.0", "checkpoint_results": [{"che')
    notes = [path for path in (member / ".ray").rglob("*") if path.is_file()]
    assert len(notes) > 1
    for path, how in zip(notes, itertools.cycle((empty, halve)), strict=False):
        how(path)
    return len(notes)


@pytest.mark.timeout(1500)
def test_a_killed_driver_costs_no_bit_whatever_is_left_of_rays_notes(
    folder: Path, whole: Path, ray_session, request: pytest.FixtureRequest, many, fault_seed, measured
) -> None:
    """Check that the killed training ends with the same bits; in the short form it had got SIGTERM before (R25)."""
    run = many("terminated", "")
    run = request.getfixturevalue(run).run.name if run else "driverless"
    rng, member = random.Random(fault_seed), folder / run / "members" / "seed-0"
    kills = many(1, 5)
    notes, sleepers = 0, []
    for _ in range(kills):
        sleepers.append(kill_driver(folder, run, max(3, epochs_of(member) + 2), rng))
        assert 3 <= epochs_of(member) < EPOCHS
        notes += damage(member)
    assert list(member.glob(f"{writer_fence.PREFIX}*"))  # what the killed one could have gone on with
    at_last_kill = epochs_of(member)
    began = time.monotonic()
    assert trained(folder, run) == member
    ended = time.monotonic()
    assert outcome(member) == outcome(whole)
    _check_tracked(folder, member)
    asleep = [sleeper for sleeper in sleepers if not gone(sleeper)]  # some end with the raylet, stopped or not
    for sleeper in asleep:
        sleeper.send_signal(signal.SIGCONT)
        wait(lambda sleeper=sleeper: gone(sleeper), "the end of a rank that woke too late")
    assert outcome(member) == outcome(whole)
    assert not list(member.glob(f"{writer_fence.PREFIX}*"))
    measured(
        "R3",
        kills=kills,
        notes_damaged=notes,
        ranks_that_woke_after=len(asleep),
        resumed_at_epoch=at_last_kill,
        rest_of_the_training_s=ended - began,
    )


def _check_tracked(folder: Path, member: Path) -> None:
    """All launches are one MLflow run, with every epoch once and what the run was."""
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
