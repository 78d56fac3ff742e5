"""R1: `kill -9` at random instants, about half inside a save; the result is bitwise that of an uninterrupted run."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from forked_trainings import (
    LIMIT_S,
    Training,
    job_in,
    move_to,
    newest_complete_step,
    result_of,
    running,
    temporary_files,
    train,
)

from ast_core.config import Job
from ast_core.weights import checkpoint

pytestmark = pytest.mark.slow

EPOCHS = 3


def unfinished(folder: Path) -> dict[Path, int]:
    """Return the folders of checkpoints and epochs without a marker, which only kills leave, and their change times."""
    there = [*folder.glob("checkpoints/step-*"), *folder.glob("epochs/epoch-*")]
    return {path: path.stat().st_mtime_ns for path in there if not (path / checkpoint.MARKER).exists()}


def kill_at_random(training: Training, rng: random.Random, run_s: float) -> bool:
    """Kill at a random instant, about every other time inside a save; return False if the training had ended before."""
    aimed, share, saves_to_pass = rng.random() < 0.5, rng.random(), rng.randint(0, 2)
    deadline = time.monotonic() + LIMIT_S
    while training.alive() and training.began_at() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    known = set(temporary_files(training.job.folder))
    if not aimed:
        time.sleep(share * run_s)
    while aimed and training.alive():
        assert time.monotonic() < deadline
        now = set(temporary_files(training.job.folder)) - known  # a file is being written
        known |= now
        if now and not saves_to_pass:
            time.sleep(share * 0.01)  # the rest of a save takes about 10 ms
            break
        saves_to_pass -= bool(now)
    return training.kill()


def kill_and_resume(job: Job, world: int, kills: int, rng: random.Random) -> Counter[str]:
    """Kill trainings `kills` times, and let the last one end; a run that ends early is followed by a new run.

    Returns:
        Number of kills, of kills inside a save, and of ends that were compared.
    """
    uninterrupted = train(move_to(job, "uninterrupted"), world)
    expected, counted = result_of(uninterrupted.job), Counter[str]()
    killed = True
    while killed or counted["kills"] < kills:
        good, before = newest_complete_step(job.folder), unfinished(job.folder)
        with running(job, world) as training:
            killed = counted["kills"] < kills and kill_at_random(training, rng, uninterrupted.seconds())
            killed = killed or any(training.wait())
        assert training.began_at() in ({None, good} if killed else {good})  # only a complete checkpoint is chosen
        assert training.steps() == list(range(good + 1, good + 1 + len(training.steps())))
        if killed:
            counted["kills"] += 1
            counted["inside"] += bool(unfinished(job.folder).items() - before.items())
        else:
            counted["ends"] += 1
            assert result_of(job) == expected
            assert not temporary_files(job.folder)
            job = move_to(job, f"member-{counted['ends']}")
    return counted


@pytest.mark.timeout(1800)
def test_killed_training_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, many, fault_seed: int, measured
) -> None:
    job = job_in(tmp_path, epochs=EPOCHS)
    counted = kill_and_resume(job, 1, many(20, 200), random.Random(fault_seed))
    measured("R1", ranks=1, kills=counted["kills"], inside_a_save=counted["inside"], compared_ends=counted["ends"])
    assert counted["inside"] > 0


@pytest.mark.timeout(900)
def test_two_killed_ranks_end_with_the_bits_of_uninterrupted_ones(
    tmp_path: Path, many, fault_seed: int, measured
) -> None:
    job = job_in(tmp_path, epochs=EPOCHS)
    counted = kill_and_resume(job, 2, many(4, 40), random.Random(fault_seed))
    measured("R1", ranks=2, kills=counted["kills"], inside_a_save=counted["inside"], compared_ends=counted["ends"])
