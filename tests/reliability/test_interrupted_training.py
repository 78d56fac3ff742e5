"""R2, R3 and R25 in one training, which loses its driver, then a worker, and then gets SIGTERM: it loses no bit.

`make test-all` repeats each fault in `test_driver.py`, `test_workers.py` and `test_preempted.py`.
"""

from __future__ import annotations

import dataclasses
import random
import signal
from pathlib import Path

import psutil
import pytest
from killed_drivers import check_tracked, damage_notes, kill_driver
from launches import training_flags
from terminations import Driver, process_of, rank_logs, terminate
from trainings import WORKER, epochs_of, fit_without_ray, gone, outcome, titled, wait

from ast_core.storage import writer_fence
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.train import train

RUN, EPOCHS = "interrupted", 12
FLAGS = ("--optim.checkpoint-every-steps", "2", "--optim.epochs", str(EPOCHS))


class WorkerKiller:
    """Kills rank 0 of a launched training inside a commit.

    Args:
        member: folder of the member.
    """

    def __init__(self, member: Path) -> None:
        self.member = member
        self.inside = 0
        self.recovery_s = 0.0

    def __call__(self, driver: Driver, ray_folder: Path) -> None:
        """Kill it, and wait until the training has continued."""
        wait(lambda: len(rank_logs(ray_folder)) == 2, "steps of both ranks")
        ranks = {rank: process_of(path) for path, rank in rank_logs(ray_folder).items()}
        workers = titled(WORKER, psutil.Process(driver.pid).children(recursive=True))
        assert set(ranks.values()) <= {process.pid for process in workers}
        victim = psutil.Process(ranks[0])
        wait(lambda: any(self.member.glob(f"{writer_fence.PREFIX}*/.*.safetensors.*")), "a commit")
        victim.kill()
        wait(lambda: gone(victim), "the end of rank 0")
        self.inside += any(self.member.glob(f"{writer_fence.PREFIX}*/*"))
        done = epochs_of(self.member)
        self.recovery_s = wait(lambda: epochs_of(self.member) > done, "an epoch after the kill")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_loses_its_driver_then_a_worker_and_gets_sigterm_loses_no_bit(
    folder: Path, fault_seed: int, measured
) -> None:
    member = folder / RUN / "members" / "seed-0"
    sleeper = kill_driver(folder, RUN, 3, random.Random(fault_seed), *FLAGS)
    killed_at = epochs_of(member)
    assert 3 <= killed_at < EPOCHS
    notes = damage_notes(member)
    assert list(member.glob(f"{writer_fence.PREFIX}*"))  # what the killed training could have continued with

    killer = WorkerKiller(member)
    found = terminate(folder, RUN, *FLAGS, before=killer)
    assert killer.inside == 1
    assert found.ranks_said.count("Resumed at step") >= 2
    assert found.exit_code == 143
    assert found.committed_step == found.stopped_at_step, found.said
    assert found.last_steps == (found.stopped_at_step,) * 2
    assert epochs_of(member) < EPOCHS
    assert found.status == "KILLED"

    settings = parse_settings(TrainSettings, "", [*training_flags(folder, RUN, EPOCHS), *FLAGS])
    fit_without_ray(settings, workers=2)
    train(settings)  # adds the epochs that MLflow lacks
    whole = fit_without_ray(dataclasses.replace(settings, run_dir=folder / "undisturbed"), workers=2)
    assert outcome(member, EPOCHS) == outcome(whole, EPOCHS)
    check_tracked(folder, member)
    asleep = not gone(sleeper)
    if asleep:
        sleeper.send_signal(signal.SIGCONT)
        wait(lambda: gone(sleeper), "the end of a rank that woke too late")
    assert outcome(member, EPOCHS) == outcome(whole, EPOCHS)
    assert not list(member.glob(f"{writer_fence.PREFIX}*"))
    assert not list(member.glob("**/.*.safetensors.*"))  # temporary files of the killed rank
    measured("R2", kills=1, inside_a_save=killer.inside, recovery_s=killer.recovery_s)
    measured("R3", kills=1, notes_damaged=notes, ranks_that_woke_after=int(asleep), resumed_at_epoch=killed_at)
    measured("R25", gone_s=found.gone_s, stopped_at_step=found.stopped_at_step, steps_lost=0)
