"""R1: `kill -9` at random instants, about half inside a save; the end is the uninterrupted run's, to the bit."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from forked_trainings import LIMIT_S, Training, beside, job_in, result_of, running, stumps, train, whole_step

from ast_core.config import Job
from ast_core.weights import checkpoint

EPOCHS = 3


def unfinished(folder: Path) -> dict[Path, int]:
    """Folders of checkpoints and epochs without a marker, as only kills leave them, and when they last changed."""
    there = [*folder.glob("checkpoints/step-*"), *folder.glob("epochs/epoch-*")]
    return {path: path.stat().st_mtime_ns for path in there if not (path / checkpoint.MARKER).exists()}


def kill_somewhere(training: Training, rng: random.Random, run_s: float) -> bool:
    """Kill at a random instant, every other time inside a save; False if it had ended before."""
    aimed, share, saves_to_pass = rng.random() < 0.5, rng.random(), rng.randint(0, 2)
    deadline = time.monotonic() + LIMIT_S
    while training.alive() and training.began_at() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    known = set(stumps(training.job.folder))
    if not aimed:
        time.sleep(share * run_s)
    while aimed and training.alive():
        assert time.monotonic() < deadline
        now = set(stumps(training.job.folder)) - known  # a file that is being written beside its place
        known |= now
        if now and not saves_to_pass:
            time.sleep(share * 0.01)  # about as long as the rest of a save takes here
            break
        saves_to_pass -= bool(now)
    return training.kill()


def kill_and_resume(job: Job, world: int, kills: int, rng: random.Random) -> Counter[str]:
    """Kill trainings until there were so many kills, and let the last one end; a run that ended makes way for another.

    Returns:
        What was counted: kills, those inside a save, and ends that were compared.
    """
    whole = train(beside(job, "whole"), world)
    expected, counted = result_of(whole.job), Counter[str]()
    killed = True
    while killed or counted["kills"] < kills:
        good, before = whole_step(job.folder), unfinished(job.folder)
        with running(job, world) as training:
            killed = counted["kills"] < kills and kill_somewhere(training, rng, whole.seconds())
            killed = killed or any(training.wait())
        assert training.began_at() in ({None, good} if killed else {good})  # only what is whole is ever chosen
        assert training.steps() == list(range(good + 1, good + 1 + len(training.steps())))
        if killed:
            counted["kills"] += 1
            counted["inside"] += bool(unfinished(job.folder).items() - before.items())
        else:
            counted["ends"] += 1
            assert result_of(job) == expected
            assert not stumps(job.folder)
            job = beside(job, f"member-{counted['ends']}")
    return counted


@pytest.mark.timeout(1800)
def test_kills_cost_no_bit(tmp_path: Path, many, fault_seed: int, measured) -> None:
    job = job_in(tmp_path, epochs=EPOCHS)
    counted = kill_and_resume(job, 1, many(20, 200), random.Random(fault_seed))
    measured("R1", ranks=1, kills=counted["kills"], inside_a_save=counted["inside"], compared_ends=counted["ends"])
    assert counted["inside"] > 0


@pytest.mark.timeout(900)
def test_kills_of_both_ranks_cost_no_bit(tmp_path: Path, many, fault_seed: int, measured) -> None:
    job = job_in(tmp_path, epochs=EPOCHS)
    counted = kill_and_resume(job, 2, many(4, 40), random.Random(fault_seed))
    measured("R1", ranks=2, kills=counted["kills"], inside_a_save=counted["inside"], compared_ends=counted["ends"])
