"""Workers that are killed cost seconds and no bit: rank 0, another, all of them, and rank 0 inside a commit."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest
from trainings import EPOCHS, WORKER, epochs_of, gone, outcome, ranks_of, run_fault, titled, trained, wait

from ast_core.storage import writer_fence

KINDS = ("rank 0", "rank 1 and one that starts", "both", "rank 0 inside a commit")
ROUNDS = 5
"""More kills than the losses in a row that end a training."""


class Killer:
    """Kills workers of a training, again and again, each time once it went on from the last.

    Args:
        member: folder of what is trained.
        kinds: of kills, in their order.
        rng: of the instants.
    """

    def __init__(self, member: Path, kinds: list[str], rng: random.Random) -> None:
        self.member, self.kinds, self.rng = member, kinds, rng
        self.recoveries_s: list[float] = []
        self.inside = self.forming = 0

    def __call__(self) -> None:
        """In a thread of its own."""
        for number, kind in enumerate(self.kinds):
            wait(lambda number=number: epochs_of(self.member) > number * EPOCHS // (len(self.kinds) + 1), "epochs")
            before = self._kill(kind)
            back_s = wait(lambda before=before: self._are_new(before), f"new ranks after the kill of {kind}")
            done = epochs_of(self.member)
            back_s += wait(lambda done=done: epochs_of(self.member) > done, f"an epoch after the kill of {kind}")
            self.recoveries_s.append(back_s)

    def _are_new(self, before: set[int]) -> bool:
        now = {rank.pid for rank in ranks_of(self.member).values()}
        return len(now) == 2 and now.isdisjoint(before)

    def _kill(self, kind: str) -> set[int]:
        wait(lambda: len(ranks_of(self.member)) == 2, "both ranks")
        ranks = ranks_of(self.member)
        victims = list(ranks.values()) if kind == "both" else [ranks[int(kind.split()[1])]]
        time.sleep(self.rng.uniform(0, 0.3))
        if "inside a commit" in kind:
            wait(lambda: any(self.member.glob(f"{writer_fence.PREFIX}*/.*.safetensors.*")), "a commit")
        for victim in victims:
            victim.kill()
        for victim in victims:
            wait(lambda victim=victim: gone(victim), "the end of a killed worker")
        self.inside += any(self.member.glob(f"{writer_fence.PREFIX}*/*"))
        if kind.endswith("starts"):
            self._kill_one_that_starts({rank.pid for rank in ranks.values()})
        return {rank.pid for rank in ranks.values()}

    def _kill_one_that_starts(self, known: set[int]) -> None:
        """Kill a worker before its group is complete; Ray must release the group's resources, or no other can start."""
        started: list[psutil.Process] = []
        wait(
            lambda: started.extend(own for own in titled(WORKER) if own.pid not in known) or started,
            "a successor that starts",
        )
        started[0].kill()
        self.forming += started[0].pid not in {rank.pid for rank in ranks_of(self.member).values()}


@pytest.mark.long  # test_interrupted_training has the short form
@pytest.mark.timeout(1500)
def test_killed_workers_cost_no_bit(folder: Path, whole: Path, ray_session, fault_seed, measured) -> None:
    killer = Killer(folder / "killed" / "members" / "seed-0", list(KINDS) * ROUNDS, random.Random(fault_seed))
    with run_fault(killer):
        member = trained(folder, "killed", "--optim.checkpoint-every-steps", "2")
    assert len(killer.recoveries_s) == len(killer.kinds)
    assert killer.inside >= ROUNDS
    assert killer.forming >= 1
    assert outcome(member) == outcome(whole)
    assert not list(member.glob(f"{writer_fence.PREFIX}*"))
    assert not list(member.glob("**/.*.safetensors.*"))  # what was half written is gone
    measured(
        "R2",
        kills=len(killer.kinds),
        inside_a_save=killer.inside,
        and_while_a_group_forms=killer.forming,
        slowest_recovery_s=max(killer.recoveries_s),
        mean_recovery_s=sum(killer.recoveries_s) / len(killer.recoveries_s),
    )
