"""The order in which Ray Tune starts a study's trials, and how many of them run at the same time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.cli.gpu_choice import Gpus
from pipeline.ray_runtime import cluster_size
from pipeline.run_folder.downloads import download_if_changed
from tune.studies import Variant
from tune.tpe_draws import TpeDraws
from tune.trial import RESULT, Trial

LOOK_EVERY_S = 2.0
"""Time between two looks at how many trials have room."""


class Room:
    """Number of trials that have room for their workers.

    On a cluster that an autoscaler may enlarge, one trial more waits for its workers: this makes the autoscaler start
    a node if the cluster may have more, and then there is room for the next trial.

    Args:
        gpus: value of `--gpus`.
        workers: number of workers of a trial.
    """

    def __init__(self, gpus: Gpus, workers: int) -> None:
        self._gpus: Gpus = gpus
        self._workers = workers
        self._trials = self._count()
        self._looked_s = time.monotonic()

    def trials(self) -> int:
        """Return the number; Ray Tune asks many times a second."""
        if self._gpus == "yes" and time.monotonic() - self._looked_s > LOOK_EVERY_S:
            self._trials = self._count()
            self._looked_s = time.monotonic()
        return self._trials

    def _count(self) -> int:
        return max(1, cluster_size.room(self._gpus) // self._workers + cluster_size.may_grow(self._gpus))


class TrialQueue(BasicVariantGenerator):
    """The study's trials in order, as many at the same time as have room for their workers."""

    def __init__(self, room: Room) -> None:
        super().__init__(max_concurrent=room.trials())
        self._room = room

    def next_trial(self) -> Any:
        """Return a trial that can start now, or None."""
        self.max_concurrent = self._room.trials()
        return super().next_trial()  # type: ignore[no-untyped-call]


class DrawnTrials:
    """The trials of a study whose variants TPE draws: those of earlier launches, then each new one when it can start.

    Args:
        draws: TPE's points.
        given: trials of the variants that the study names.
        make: function that returns the trials of a variant, one for each seed.
        again: whether trials with a result run again, which ASHA needs to compare all scores.
    """

    def __init__(
        self, draws: TpeDraws, given: Sequence[Trial], make: Callable[[Variant], list[Trial]], *, again: bool
    ) -> None:
        self._draws = draws
        self._make = make
        self._again = again
        self._of: dict[str, list[Trial]] = {}
        """Trials by drawn variant."""
        self._ended: set[str] = set()
        """Names of the trials that this launch ran."""
        self._waiting: list[Trial] = []
        self.trials: list[Trial] = []
        """All trials so far; the list grows."""
        self._add(given)
        for variant in draws.variants:
            self._add_variant(variant)

    @property
    def left(self) -> int:
        """Number of points that TPE has still to draw."""
        return self._draws.left

    def has_next(self) -> bool:
        """Return whether there is a trial to run; draw a variant if no trial waits."""
        while not self._waiting:
            variant = self._draws.draw()
            if variant is None:
                return False
            self._add_variant(variant)
        return True

    def next_trial(self) -> Trial | None:
        """Return the next trial to run, or None after the last one."""
        return self._waiting.pop(0) if self.has_next() else None

    def end_trial(self, trial: Trial) -> None:
        """Let TPE learn the score of a trial's variant, if the trial was the last of its seeds."""
        self._ended.add(trial.name)
        for path in (trial.history, trial.folder / RESULT):
            download_if_changed(path)
        if trial.variant in self._of:
            self._tell(trial.variant)

    def _add_variant(self, variant: Variant) -> None:
        """Add a variant's trials, which may have results of an earlier launch."""
        self._of[variant.name] = self._make(variant)
        self._add(self._of[variant.name])
        self._tell(variant.name)

    def _add(self, trials: Sequence[Trial]) -> None:
        self.trials += trials
        self._waiting += [trial for trial in trials if self._again or trial.load_result() is None]

    def _tell(self, variant: str) -> None:
        """Let TPE learn a variant's mean score, unless one of its trials has not ended."""
        own = self._of[variant]
        if all(trial.name in self._ended or trial.load_result() is not None for trial in own):
            scores = [score for score in (trial.read_score() for trial in own) if score is not None]
            self._draws.tell(variant, statistics.fmean(scores) if scores else None)


class TpeQueue(Searcher):
    """Ray Tune's view of `DrawnTrials`: a trial starts when it has room, and TPE learns when it ends."""

    def __init__(self, drawn: DrawnTrials, room: Room) -> None:
        super().__init__()
        self._drawn = drawn
        self._room = room
        self._running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return a trial that can start now, None, or that there are no more."""
        if len(self._running) >= self._room.trials():
            return None
        trial = self._drawn.next_trial()
        if trial is None:
            return Searcher.FINISHED
        self._running[trial_id] = trial
        return {"trial": trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Let TPE learn from a trial; one that Ray lost has no score, and the next launch runs it again."""
        trial = self._running.pop(trial_id)
        if not error:
            self._drawn.end_trial(trial)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal has every draw and score already."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a killed search resumes from the trials' folders and the journal."""
