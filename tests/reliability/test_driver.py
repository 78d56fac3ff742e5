"""The driver is killed, and Ray's own files are emptied or cut to halves: the same command continues.

Each time one rank is stopped before, and so outlives all that could end it; it wakes when its successors are done.
`test_interrupted_training` has the short form.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from killed_drivers import check_tracked, damage_notes, kill_driver
from trainings import EPOCHS, epochs_of, gone, outcome, trained, wait

from ast_core.storage import writer_fence

KILLS = 5


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_killed_driver_costs_no_bit_whatever_is_left_of_rays_notes(
    folder: Path, whole: Path, ray_session, fault_seed, measured
) -> None:
    run, rng = "driverless", random.Random(fault_seed)
    member = folder / run / "members" / "seed-0"
    notes, sleepers = 0, []
    for _ in range(KILLS):
        sleepers.append(kill_driver(folder, run, max(3, epochs_of(member) + 2), rng))
        assert 3 <= epochs_of(member) < EPOCHS
        notes += damage_notes(member)
    assert list(member.glob(f"{writer_fence.PREFIX}*"))  # what the killed one could have gone on with
    at_last_kill = epochs_of(member)
    began = time.monotonic()
    assert trained(folder, run) == member
    ended = time.monotonic()
    assert outcome(member) == outcome(whole)
    check_tracked(folder, member)
    asleep = [sleeper for sleeper in sleepers if not gone(sleeper)]  # some end with the raylet, stopped or not
    for sleeper in asleep:
        sleeper.send_signal(signal.SIGCONT)
        wait(lambda sleeper=sleeper: gone(sleeper), "the end of a rank that woke too late")
    assert outcome(member) == outcome(whole)
    assert not list(member.glob(f"{writer_fence.PREFIX}*"))
    measured(
        "R3",
        kills=KILLS,
        notes_damaged=notes,
        ranks_that_woke_after=len(asleep),
        resumed_at_epoch=at_last_kill,
        rest_of_the_training_s=ended - began,
    )
