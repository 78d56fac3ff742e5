"""Run a study: every variant with several seeds, each as a Ray Tune trial that calls the pipeline's stages.

ast-pipeline search --study overlap --recipe esc50 --data.source ESC-50 --repeats 3
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["search", *sys.argv[1:]])
    sys.exit()


import ray
import tomli_w
from ray.tune import ResultGrid, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from ast_core.config import Recipe
from ast_core.errors import require
from ast_core.serialization import to_dict
from ast_core.shards.index import INDEX, ShardIndex
from ast_core.storage.atomic_files import atomic_write
from ast_core.storage.json_files import sha256_of_json
from pipeline.cli.command_line import parse_settings, select_settings, with_changes
from pipeline.cli.gpu_choice import Gpus
from pipeline.cli.program import run_stage
from pipeline.cli.stages import PrepareSettings, ReportSettings, RunSettings
from pipeline.prepare import prepare
from pipeline.ray_runtime import cluster_size, connection, placement_groups, preemption
from pipeline.ray_runtime.training_supervisor import placement_group_file
from pipeline.report import report
from pipeline.reporting.history import read_history
from pipeline.run_folder import downloads, sync
from pipeline.run_folder.folder_lock import lock_folder
from pipeline.run_folder.layout import HISTORIES, trial_files
from pipeline.run_folder.opened import opened
from pipeline.run_folder.pinned_models import pin_initial_weights
from pipeline.tracking import mlflow_store, runs
from tune.settings import SearchSettings
from tune.studies import Study, Variant, load_study
from tune.study_report import Table, build_table, write_report
from tune.trial import RESULT, SCORE, Trial, run_trial
from tune.trial_bars import TrialBars

MAX_RESTARTS = 2
"""Number of restarts of a trial whose process was lost. A restarted trial resumes from its checkpoint."""
LOOK_EVERY_S = 2.0
"""Time between two looks at how many trials have room."""


def search(settings: SearchSettings) -> tuple[Table, list[Trial]]:
    """Prepare the shards, run the unfinished trials, and write the table to `studies/STUDY/report/`.

    The table, the plot and the CSV file are also logged to MLflow.

    Returns:
        The table, and the trials with their results on disk.

    Raises:
        UserError: the study does not exist, the recipe does not allow a variant, or a trial failed.
    """
    require(settings.repeats >= 1, f"--repeats is {settings.repeats}; set it to 1 or more.")
    study = load_study(settings.study)
    recipes = {variant.name: with_changes(settings, variant.changes) for variant in study.variants}
    with (
        opened(settings, trial_files(settings.study_dir.name, [RESULT, HISTORIES])),
        lock_folder(settings.study_dir, "search"),
    ):
        table, trials = _run_study(settings, study, recipes)
    table.show(Console())
    report(select_settings(settings, ReportSettings))
    _require_results(trials)
    if settings.winner:
        _write_winner(settings.winner.absolute(), table, recipes)
    return table, trials


def _run_study(settings: SearchSettings, study: Study, recipes: dict[str, Recipe]) -> tuple[Table, list[Trial]]:
    """Run the unfinished trials under one MLflow run, and write the study's table."""
    mlflow_store.open_store(settings.tracking)
    tags = {
        "stage": "study",
        "study": study.name,
        "run_dir": str(settings.run_dir),
        "folder_id": runs.folder_id(settings.study_dir),
    }
    with (
        connection.connect(settings.address, settings.workers, settings.gpus),
        runs.start_run(settings.experiment, f"{settings.experiment}-{study.name}", to_dict(settings), tags) as run_id,
    ):
        shards = {name: _prepare_shards(settings, recipe) for name, recipe in recipes.items()}
        trials = [
            _make_trial(settings, variant, seed, recipes[variant.name], shards[variant.name], run_id)
            for variant in study.variants
            for seed in range(variant.repeats or settings.repeats)
        ]
        _run_trials(settings, study, trials)
        table = build_table(study, trials)
        write_report(settings.study_dir, table)
        runs.log_artifacts(run_id, settings.study_dir / "report", under="study")
        runs.log_metrics(
            run_id, {f"{row.variant}.{key}": value for row in table.rows for key, value in row.logged.items()}
        )
    return table, trials


def _prepare_shards(settings: SearchSettings, recipe: Recipe) -> tuple[Path, str]:
    """Return the folder and the data hash of a variant's shards; prepare them if they do not exist.

    Variants share the run's shards unless they change the front end.
    """
    shards = settings.shards
    if recipe.front_end != settings.front_end:
        shards = shards.with_name(f"{shards.name}-{sha256_of_json(to_dict(recipe.front_end))[:8]}")
    downloads.download_shards(shards)
    if (shards / INDEX).is_file():
        return shards, ShardIndex.load(shards).data_hash
    own = dataclasses.replace(
        select_settings(settings, PrepareSettings),
        shards=shards, data=recipe.data, front_end=recipe.front_end, prepare=recipe.prepare,
    )  # fmt: skip
    return shards, prepare(own).data_hash


def _make_trial(
    settings: SearchSettings, variant: Variant, seed: int, recipe: Recipe, shards: tuple[Path, str], run_id: str
) -> Trial:
    """Return a trial whose settings have one seed and a run folder of their own."""
    sections = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)}
    folder = settings.study_dir / "trials" / variant.name / f"seed-{seed}"
    own = dataclasses.replace(
        select_settings(settings, RunSettings),
        **{**sections, "ensemble": dataclasses.replace(recipe.ensemble, seeds=(seed,))},
        run_dir=folder, shards=shards[0],
    )  # fmt: skip
    own = pin_initial_weights(own, settings.run_dir)  # every trial begins with the same commit
    return Trial(variant.name, own, shards[1], run_id, sync.object_stores(settings))


def _run_trials(settings: SearchSettings, study: Study, trials: Sequence[Trial]) -> None:
    """Run the trials that have no result. ASHA also gets the finished ones again, to compare with all scores."""
    pending = [trial for trial in trials if trial.load_result() is None]
    console = Console()
    console.print(f"{len(trials)} trials, {len(trials) - len(pending)} done before, {len(pending)} to run")
    if not pending:
        return
    asha = study.early_stopping == "asha"
    written = [path for trial in pending for path in (trial.history, trial.folder / RESULT)]
    with TrialBars(trials), sync.follow_store(written), _scratch_folder(settings.study_dir / ".ray") as scratch:
        try:
            grid = _make_tuner(settings, trials if asha else pending, scratch, asha).fit()
        except KeyboardInterrupt:
            preemption.ask_trainings_to_stop(trial.history.parent for trial in pending)
            raise
    if asha:
        _write_stopped_results(trials)
    _raise_first_error(grid, pending)


def _make_tuner(settings: SearchSettings, trials: Sequence[Trial], scratch: Path, asha: bool) -> Tuner:
    """Return a tuner that runs only as many trials at the same time as `_TrialQueue` allows."""
    epochs = max(trial.settings.optim.epochs for trial in trials)
    # ASHA must not stop a trial at its last epoch: the test comes after it.
    scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs + 1, grace_period=1, reduction_factor=2) if asha else None
    asked, gpus = settings.workers, settings.gpus
    workers = max(cluster_size.worker_count(asked, gpus, trial.settings.optim.batch_size) for trial in trials)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # `TrialBars` shows the trials
    # On Ctrl-C, Ray Tune would return as if all trials had ended, and they would count as stopped by ASHA.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    return Tuner(
        # All CPUs are for the workers, and Ray Tune refuses a trial without any resource.
        ray.tune.with_resources(run_trial, {"memory": 2**20}),
        param_space={"trial": ray.tune.grid_search(list(trials))},
        tune_config=TuneConfig(
            metric=SCORE,
            mode="max",
            scheduler=scheduler,
            search_alg=_TrialQueue(gpus, workers),
            reuse_actors=not asha,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            **sync.ray_storage_arguments(scratch),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=[_PlacementGroupRelease()],
        ),
    )


class _TrialQueue(BasicVariantGenerator):
    """The study's trials in order, as many at the same time as have room for their workers.

    On a cluster that an autoscaler may enlarge, one trial more waits for its workers: this makes the autoscaler start
    a node if the cluster may have more, and then there is room for the next trial.

    Args:
        gpus: value of `--gpus`.
        workers: number of workers of a trial.
    """

    def __init__(self, gpus: Gpus, workers: int) -> None:
        super().__init__(max_concurrent=_count_parallel_trials(gpus, workers))
        self._gpus: Gpus = gpus
        self._workers = workers
        self._looked_s = time.monotonic()

    def next_trial(self) -> Any:
        """Return a trial that can start now, or None; Ray Tune calls this many times a second."""
        if self._gpus == "yes" and time.monotonic() - self._looked_s > LOOK_EVERY_S:
            self.max_concurrent = _count_parallel_trials(self._gpus, self._workers)
            self._looked_s = time.monotonic()
        return super().next_trial()  # type: ignore[no-untyped-call]


def _count_parallel_trials(gpus: Gpus, workers: int) -> int:
    return max(1, cluster_size.room(gpus) // workers + cluster_size.may_grow(gpus))


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


def _raise_first_error(grid: ResultGrid, pending: Sequence[Trial]) -> None:
    """Raise the first error of a trial that has no result."""
    if any(trial.load_result() is None for trial in pending):
        for number in range(len(grid)):
            error = grid[number].error
            if error is not None:
                raise error


def _require_results(trials: Sequence[Trial]) -> None:
    """Raise UserError if a trial has no result."""
    failed = [trial for trial in trials if trial.load_result() is None]
    names = "; ".join(f"{trial.name} (see {trial.folder / 'log.txt'})" for trial in failed)
    require(
        not failed,
        f"{len(failed)} of {len(trials)} trials failed: {names}. Fix the cause and run the same command again.",
    )


def _write_winner(path: Path, table: Table, recipes: dict[str, Recipe]) -> None:
    """Write the best variant as a TOML recipe."""
    best = table.best()
    recipe = recipes[best.variant]
    sections = {f.name: to_dict(getattr(recipe, f.name)) for f in dataclasses.fields(Recipe)}
    values = {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}
    with atomic_write(path) as temporary:
        temporary.write_text(
            f"# {best.variant} of the study {table.study.name}: {best.shown} {table.metric} on {table.data}.\n"
            + tomli_w.dumps(values),
            encoding="utf-8",
        )
    Console().print(f"Wrote the best variant, {best.variant}, to {path}", markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study as a program."""
    run_stage(lambda: search(parse_settings(SearchSettings, __doc__, argv)))
