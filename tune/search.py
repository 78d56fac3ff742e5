"""Run a study: every variant with several seeds, each as a Ray Tune trial that calls the pipeline's stages.

ast-pipeline search --study overlap --recipe esc50 --data.source ESC-50 --repeats 3
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["search", *sys.argv[1:]])
    sys.exit()


import tomli_w
from rich.console import Console

from ast_core.config import Recipe
from ast_core.errors import require
from ast_core.serialization import to_dict
from ast_core.shards.index import INDEX, ShardIndex
from ast_core.storage.atomic_files import atomic_write
from ast_core.storage.json_files import sha256_of_json
from pipeline.cli.command_line import parse_settings, select_settings, with_changes
from pipeline.cli.program import run_stage
from pipeline.cli.stages import PrepareSettings, ReportSettings, RunSettings
from pipeline.prepare import prepare
from pipeline.ray_runtime import connection
from pipeline.report import report
from pipeline.run_folder import downloads, sync
from pipeline.run_folder.folder_lock import lock_folder
from pipeline.run_folder.layout import HISTORIES, STUDIES, trial_files
from pipeline.run_folder.opened import opened
from pipeline.run_folder.pinned_models import pin_initial_weights
from pipeline.tracking import mlflow_store, runs
from tune.settings import SearchSettings
from tune.studies import Study, Variant, load_study
from tune.study_report import Table, build_table, write_report
from tune.tpe_draws import JOURNAL, TpeDraws, require_optuna
from tune.trial import RESULT, Trial
from tune.trial_queue import DrawnTrials
from tune.trial_runs import run_trials


def search(settings: SearchSettings) -> tuple[Table, list[Trial]]:
    """Prepare the shards, run the unfinished trials, and write the table to `studies/STUDY/report/`.

    The table, the plot and the CSV file are also logged to MLflow.

    Returns:
        The table, and the trials with their results on disk.

    Raises:
        UserError: the study does not exist, the recipe does not allow a variant, its sampler is not installed, or a
            trial failed.
    """
    require(settings.repeats >= 1, f"--repeats is {settings.repeats}; set it to 1 or more.")
    study = load_study(settings.study)
    if study.tpe is not None:
        require_optuna()
    recipes = [with_changes(settings, changes) for changes in study.extremes()]
    reads = [
        *trial_files(settings.study_dir.name, [RESULT, HISTORIES]),
        f"{STUDIES}/{settings.study_dir.name}/{JOURNAL}",
    ]
    with opened(settings, reads), lock_folder(settings.study_dir, "search"):
        table, trials = _run_study(settings, study, recipes)
    table.show(Console())
    report(select_settings(settings, ReportSettings))
    _require_results(trials)
    if settings.winner:
        _write_winner(settings, settings.winner.absolute(), table)
    return table, trials


def _run_study(settings: SearchSettings, study: Study, recipes: Sequence[Recipe]) -> tuple[Table, list[Trial]]:
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
        make = functools.partial(_make_trials, settings, run_id)
        trials = [trial for variant in study.variants for trial in make(variant)]
        if study.tpe is None:
            run_trials(settings, study, recipes, trials)
        else:
            draws = TpeDraws(study.tpe, settings.study_dir, _list_ingredients(settings))
            drawn = DrawnTrials(draws, trials, make, again=study.early_stopping == "asha")
            trials = drawn.trials
            run_trials(settings, study, recipes, trials, drawn)
            note = f"{study.note} {draws.note}".strip()
            study = dataclasses.replace(study, variants=(*study.variants, *draws.variants), note=note)
        table = build_table(study, trials)
        write_report(settings.study_dir, table)
        runs.log_artifacts(run_id, settings.study_dir / "report", under="study")
        runs.log_metrics(
            run_id, {f"{row.variant}.{key}": value for row in table.rows for key, value in row.logged.items()}
        )
    return table, trials


def _list_ingredients(settings: SearchSettings) -> dict[str, Any]:
    """Return what the scores of TPE's points depend on: the recipe, and the data's hash."""
    sections = {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(Recipe)}
    return {
        "recipe": {**sections, "prepare": None, "ensemble": None},
        "data_hash": _prepare_shards(settings, settings)[1],
    }


def _prepare_shards(settings: SearchSettings, recipe: Recipe | SearchSettings) -> tuple[Path, str]:
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


def _make_trials(settings: SearchSettings, run_id: str, variant: Variant) -> list[Trial]:
    """Return the trials of a variant, one for each seed, after preparing its shards if they do not exist."""
    recipe = with_changes(settings, variant.changes)
    shards = _prepare_shards(settings, recipe)
    seeds = range(variant.repeats or settings.repeats)
    return [_make_trial(settings, variant, seed, recipe, shards, run_id) for seed in seeds]


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


def _require_results(trials: Sequence[Trial]) -> None:
    """Raise UserError if a trial has no result."""
    failed = [trial for trial in trials if trial.load_result() is None]
    names = "; ".join(f"{trial.name} (see {trial.folder / 'log.txt'})" for trial in failed)
    require(
        not failed,
        f"{len(failed)} of {len(trials)} trials failed: {names}. Fix the cause and run the same command again.",
    )


def _write_winner(settings: SearchSettings, path: Path, table: Table) -> None:
    """Write the best variant as a TOML recipe."""
    best = table.best()
    variant = next(variant for variant in table.study.variants if variant.name == best.variant)
    recipe = with_changes(settings, variant.changes)
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
