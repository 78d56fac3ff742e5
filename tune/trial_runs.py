"""The run of a study's trials by Ray Tune, as many at the same time as have room for their workers."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.tune import ResultGrid, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console

from ast_core.config import Recipe
from pipeline.ray_runtime import cluster_size, placement_groups, preemption
from pipeline.ray_runtime.training_supervisor import placement_group_file
from pipeline.reporting.history import read_history
from pipeline.run_folder import sync
from tune.settings import SearchSettings
from tune.studies import Study
from tune.trial import RESULT, SCORE, Trial, run_trial
from tune.trial_bars import TrialBars
from tune.trial_queue import DrawnTrials, Room, TpeQueue, TrialQueue

MAX_RESTARTS = 2
"""Number of restarts of a trial whose process was lost. A restarted trial resumes from its checkpoint."""


def run_trials(
    settings: SearchSettings,
    study: Study,
    recipes: Sequence[Recipe],
    trials: Sequence[Trial],
    drawn: DrawnTrials | None = None,
) -> None:
    """Run the trials that have no result. ASHA also gets the finished ones again, to compare with all scores.

    Args:
        settings: settings of the search.
        study: study whose trials run.
        recipes: recipes of `Study.extremes`.
        trials: trials so far; the growing list of `drawn` if TPE draws.
        drawn: trials that TPE draws.
    """
    done = {trial.name for trial in trials if trial.load_result() is not None}
    pending = [trial for trial in trials if trial.name not in done]
    total = len(trials) + (drawn.left * settings.repeats if drawn is not None else 0)
    Console().print(f"{total} trials, {len(done)} done before, {total - len(done)} to run")
    if not pending and not (drawn is not None and drawn.left and drawn.has_next()):
        return
    asha = study.early_stopping == "asha"
    room = Room(settings.gpus, _count_workers(settings, recipes))
    queue = TrialQueue(room) if drawn is None else TpeQueue(drawn, room)
    listed = {"trial": ray.tune.grid_search(list(trials if asha else pending))} if drawn is None else {}

    def list_running() -> list[Trial]:
        return [trial for trial in tuple(trials) if trial.name not in done]

    def list_written() -> list[Path]:
        return [path for trial in list_running() for path in (trial.history, trial.folder / RESULT)]

    with (
        TrialBars(trials, total),
        sync.follow_store(settings.study_dir, list_written),
        _scratch_folder(settings.study_dir / ".ray") as scratch,
    ):
        epochs = max(recipe.optim.epochs for recipe in recipes)
        tuner = _make_tuner(queue, listed, 1 if drawn is None else total, scratch, epochs if asha else 0)
        try:
            grid = tuner.fit()
        except KeyboardInterrupt:
            preemption.ask_trainings_to_stop(trial.history.parent for trial in list_running())
            raise
    if asha:
        _write_stopped_results(trials)
    _raise_first_error(grid, trials)


def _count_workers(settings: SearchSettings, recipes: Sequence[Recipe]) -> int:
    """Return the workers of the study's largest trial."""
    batch_sizes = {recipe.optim.batch_size for recipe in recipes}
    return max(cluster_size.worker_count(settings.workers, settings.gpus, size) for size in batch_sizes)


def _make_tuner(
    queue: TrialQueue | TpeQueue, listed: Mapping[str, Any], samples: int, scratch: Path, asha_epochs: int
) -> Tuner:
    """Return a tuner that runs only as many trials at the same time as the queue allows.

    Args:
        queue: order of the trials.
        listed: trials that are known before; empty if the queue makes them.
        samples: number of times that Ray Tune asks the queue for each listed trial, or for a trial.
        scratch: folder for Ray Tune's own files.
        asha_epochs: most epochs of a trial; 0 for no early stopping.
    """
    # ASHA must not stop a trial at its last epoch: the test comes after it.
    scheduler = (
        ASHAScheduler(time_attr="epoch", max_t=asha_epochs + 1, grace_period=1, reduction_factor=2)
        if asha_epochs
        else None
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # `TrialBars` shows the trials
    # On Ctrl-C, Ray Tune would return as if all trials had ended, and they would count as stopped by ASHA.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    return Tuner(
        # All CPUs are for the workers, and Ray Tune refuses a trial without any resource.
        ray.tune.with_resources(run_trial, {"memory": 2**20}),
        param_space=dict(listed),
        tune_config=TuneConfig(
            metric=SCORE,
            mode="max",
            scheduler=scheduler,
            search_alg=queue,
            num_samples=samples,
            reuse_actors=not asha_epochs,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            **sync.ray_storage_arguments(scratch),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=[_PlacementGroupRelease()],
        ),
    )


class _PlacementGroupRelease(ray.tune.Callback):
    """Callback that frees the placement group of an ended trial.

    Ray Tune kills a trial that it stops early, so the trial cannot free the group itself.
    """

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Free the trial's placement group; Ray Tune calls this."""
        own: Trial = trial.config["trial"]
        placement_groups.release_placement_group(placement_group_file(own.history.parent))


@contextlib.contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """Provide a folder for Ray Tune's own files; a killed search resumes from the trials' folders instead."""
    sync.remove_scratch(folder)
    try:
        yield folder
    finally:
        sync.remove_scratch(folder)


def _write_stopped_results(trials: Sequence[Trial]) -> None:
    """Store a result for each trial that ASHA stopped, so that it is not run again."""
    for trial in trials:
        rows = read_history(trial.history)
        if trial.load_result() is None and not (trial.folder / "trial.json").is_file() and rows:
            trial.write_result("stopped", epochs=len(rows), seconds=sum(row["seconds"] for row in rows))


def _raise_first_error(grid: ResultGrid, trials: Sequence[Trial]) -> None:
    """Raise the first error of a trial that has no result."""
    if any(trial.load_result() is None for trial in trials):
        for number in range(len(grid)):
            error = grid[number].error
            if error is not None:
                raise error
