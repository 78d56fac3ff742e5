"""The order of a study's trials: TPE learns a variant's mean once all its seeds have ended, and an end makes room."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from pipeline.cli.stages import RunSettings
from tune.studies import Variant
from tune.study_space import Axis, TpeSpace
from tune.tpe_draws import TpeDraws
from tune.trial import Trial
from tune.trial_queue import DrawnTrials, TpeQueue

SPACE = TpeSpace((Axis("optim.learning_rate", 1e-4, 1e-2, log=True),), samples=3, startup=2, seed=0)


class RoomForThree:
    """A cluster on which three trials run at the same time."""

    def trials(self) -> int:
        """Return the number of trials."""
        return 3


def drawn_trials(folder: Path, again: bool = False) -> DrawnTrials:
    """Return a search with one named variant, and two seeds of each drawn one."""

    def make(variant: Variant) -> list[Trial]:
        settings = RunSettings(shards=folder / "shards")
        seeds = [dataclasses.replace(settings.ensemble, seeds=(seed,)) for seed in (0, 1)]
        folders = [folder / variant.name / f"seed-{seed}" for seed in (0, 1)]
        own = [dataclasses.replace(settings, ensemble=e, run_dir=f) for e, f in zip(seeds, folders, strict=True)]
        return [Trial(variant.name, one, "data", "") for one in own]

    return DrawnTrials(TpeDraws(SPACE, folder, ""), make(Variant("named", {}))[:1], make, again=again)


def end(drawn: DrawnTrials, trial: Trial, score: float | None) -> None:
    """End a trial with this score, or with an error of the user if it is None."""
    trial.history.parent.mkdir(parents=True)
    trial.history.write_text(json.dumps({"epoch": 1, "test_mAP": score or 0.9, "seconds": 1}) + "\n")
    if score is None:
        trial.write_result("failed", reason="not finite")
    else:
        trial.write_result("finished", seconds=1)
    drawn.end_trial(trial)


def scores(drawn: DrawnTrials) -> list[float | None]:
    return list(drawn._draws._scores.values())


def test_tpe_learns_a_mean_when_all_seeds_of_a_variant_have_ended_and_a_failed_seed_has_no_score(
    tmp_path: Path,
) -> None:
    drawn = drawn_trials(tmp_path)
    named, *seeds = (drawn.next_trial() for _ in range(3))
    end(drawn, named, 0.1)
    assert [seed.seed for seed in seeds] == [0, 1]
    end(drawn, seeds[0], 0.4)
    assert scores(drawn) == []
    end(drawn, seeds[1], 0.2)
    assert scores(drawn) == [pytest.approx(0.3)]
    for score in (0.5, None, None, None):
        end(drawn, drawn.next_trial(), score)
    assert scores(drawn) == [pytest.approx(0.3), 0.5, None]
    assert drawn.next_trial() is None
    assert len(drawn.trials) == 1 + 3 * 2
    assert drawn.left == 0


def test_next_launch_runs_unfinished_trials_first_and_for_asha_the_finished_ones_again(tmp_path: Path) -> None:
    drawn = drawn_trials(tmp_path)
    trials = [drawn.next_trial() for _ in range(4)]
    for trial in (trials[0], trials[2]):
        end(drawn, trial, 0.5)
    assert drawn_trials(tmp_path).next_trial() == trials[1]
    assert [drawn_trials(tmp_path, again=True).next_trial() for _ in range(2)] == [trials[0]] * 2
    later = drawn_trials(tmp_path)
    assert [later.next_trial() for _ in range(2)] == [trials[1], trials[3]]
    end(later, trials[1], 0.7)
    assert scores(later) == [pytest.approx(0.6)]
    assert [trial.name for trial in later.trials[3:]] == [trial.name for trial in (trials[3], *later.trials[4:])]


def test_queue_starts_a_trial_when_one_has_ended_and_a_trial_that_ray_lost_has_no_score(tmp_path: Path) -> None:
    drawn = drawn_trials(tmp_path)
    queue = TpeQueue(drawn, RoomForThree())
    first = [queue.suggest(str(number)) for number in range(4)]
    assert first[3] is None
    end(drawn, first[1]["trial"], 0.5)
    queue.on_trial_complete("1", {"score": 0.5})
    queue.on_trial_complete("2", error=True)
    assert scores(drawn) == []
    fourth = queue.suggest("4")["trial"]
    assert fourth.variant != first[1]["trial"].variant
    queue.on_trial_complete("0")
    queue.on_trial_complete("4")
    further = [queue.suggest(str(number))["trial"] for number in range(5, 8)]
    assert len({fourth.name, *(trial.name for trial in further)}) == 4
    for number in range(5, 8):
        queue.on_trial_complete(str(number))
    assert queue.suggest("8") == Searcher.FINISHED
