"""The main job: prepare, train each member, combine, evaluate, calibrate, register, predict, report, from one recipe.

ast-pipeline run --recipe demo
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["run", *sys.argv[1:]])
    sys.exit()


from rich.console import Console
from rich.table import Table

from ast_core.evaluation.metrics import headline_metric
from ast_core.redaction import without_secrets
from ast_core.storage.json_files import write_json
from pipeline.calibrate import calibrate
from pipeline.cli.command_line import parse_settings, select_settings
from pipeline.cli.gpu_choice import Gpus
from pipeline.cli.program import run_stage
from pipeline.cli.stages import (
    CalibrateSettings,
    CombineSettings,
    EvaluateSettings,
    PredictSettings,
    PrepareSettings,
    RegisterSettings,
    ReportSettings,
    RunSettings,
    TrainSettings,
)
from pipeline.combine import combine
from pipeline.evaluate import evaluate
from pipeline.predict import predict
from pipeline.prepare import prepare
from pipeline.ray_runtime import connection
from pipeline.register import register
from pipeline.report import report
from pipeline.run_folder.extracted_recordings import extract_recordings
from pipeline.run_folder.layout import RunFolder
from pipeline.run_folder.listed_clips import SYNTHETIC, list_clips
from pipeline.run_folder.opened import opened
from pipeline.run_folder.pinned_models import pin_initial_weights
from pipeline.tracking import registry, runs
from pipeline.tracking.registry import CHAMPION
from pipeline.train import MemberTrainings

ResultT = TypeVar("ResultT")
TYPICAL_S = {"demo": 150}
"""Seconds that all stages of a recipe take on two quiet cores, as the recipe's run prints at its end."""
SHOWN_RECORDINGS = 3
"""Test recordings that are tagged at the end, for the user to check by ear."""


def run(settings: RunSettings) -> None:
    """Run all stages in order; run again, each does only what is not done yet.

    Raises:
        UserError: as its stages do.
    """
    seconds: dict[str, float] = {}
    stages = _list_stages(settings)
    _announce(settings, stages)

    def timed(name: str, stage: Callable[[], ResultT]) -> ResultT:
        Console().rule(f"{name} ({stages.index(name) + 1} of {len(stages)})")
        started = time.monotonic()
        result = stage()
        seconds[name] = time.monotonic() - started
        return result

    with opened(settings, exclusive="run") as folder:
        runs.open_experiment(settings.tracking, settings.experiment)
        settings = pin_initial_weights(settings)  # now, because preparing the data may take hours
        with connection.connect(settings.address, settings.workers, settings.gpus):
            timed("prepare", lambda: prepare(select_settings(settings, PrepareSettings)))
            with MemberTrainings() as trainings:
                for seed in settings.ensemble.seeds:
                    member = dataclasses.replace(select_settings(settings, TrainSettings), seed=seed)
                    timed(f"train seed {seed}", functools.partial(trainings.train, f"seed {seed}", member))
            bundles = timed("combine", lambda: combine(select_settings(settings, CombineSettings)))
            summary = timed("evaluate", lambda: evaluate(select_settings(settings, EvaluateSettings)))
            if settings.data.validation_split:  # the test split must not choose thresholds
                timed("calibrate", lambda: calibrate(select_settings(settings, CalibrateSettings)))
            versions = timed("register", lambda: register(select_settings(settings, RegisterSettings)))
    recordings = _test_recordings(settings, folder)
    model = _uri(settings.model_name, versions[settings.model_name])
    gpus: Gpus = "no" if settings.gpus == "no" else "auto"  # this process may be on a node without GPUs
    again = PredictSettings(inputs=recordings, model=model, top_k=3, gpus=gpus, tracking=settings.tracking)
    timed("predict", lambda: predict(again))
    timed("report", lambda: report(select_settings(settings, ReportSettings)))
    write_json(folder.stage_seconds, seconds)
    _show(settings, folder, seconds, summary[bundles[-1].name], model)


def _list_stages(settings: RunSettings) -> list[str]:
    """Return the names of the stages in their order."""
    members = [f"train seed {seed}" for seed in settings.ensemble.seeds]
    calibrate_too = ["calibrate"] if settings.data.validation_split else []
    return ["prepare", *members, "combine", "evaluate", *calibrate_too, "register", "predict", "report"]


def _announce(settings: RunSettings, stages: list[str]) -> None:
    """Print what this run will do and, if it is known, how long that usually takes."""
    members, epochs = len(settings.ensemble.seeds), settings.optim.epochs
    text = f"{len(stages)} stages: {', '.join(stages)}. Each of the {members} members trains for {epochs} epochs."
    if settings.recipe in TYPICAL_S:
        text += f" On two cores this usually takes about {TYPICAL_S[settings.recipe]} s."
    Console(highlight=False).print(f"{text} What is done already is not done again.")


def _test_recordings(settings: RunSettings, folder: RunFolder) -> tuple[str, ...]:
    """Return files with the first recordings of the test split; those inside other files or a store are saved first."""
    source = str(folder.synthetic_audio) if settings.data.source == SYNTHETIC else settings.data.source
    manifest, _ = list_clips(settings.data, source, folder.shards, folder.archive_listings)
    found = (clip for clip in manifest.clips if clip.split == settings.data.test_split and clip.path)
    shown = list(itertools.islice(found, SHOWN_RECORDINGS))
    return tuple(map(str, extract_recordings(shown, manifest.audio_column, folder.test_recordings)))


def _uri(name: str, version: int) -> str:
    """Return the URI of a version: by its alias if it is the champion."""
    champion = registry.version_of_alias(name, CHAMPION)
    return f"models:/{name}@{CHAMPION}" if champion and champion.number == version else f"models:/{name}/{version}"


def _show(
    settings: RunSettings, folder: RunFolder, seconds: dict[str, float], score: dict[str, float], model: str
) -> None:
    table = Table(title="time")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    table.add_row("all", f"{sum(seconds.values()):.1f}", style="bold")
    Console().print(table)
    key = headline_metric("accuracy" in score)
    console = Console(soft_wrap=True, highlight=False)  # unbroken lines: the user copies the commands
    console.rule("done")
    console.print(f"Made: {model}, of {len(settings.ensemble.seeds)} members")
    console.print(f"Test {key}: [bold]{score[key]:.3f}[/] (chance {score[f'chance_{key}']:.3f})")
    console.print(f"All files of this run are in {folder.path}", markup=False)
    console.print(f"Report: {folder.report_page}", markup=False)
    console.print("Runs, curves and the registry's page, at http://127.0.0.1:5000/#/models, with this command:")
    console.print(
        f"  {_program('mlflow')} ui --backend-store-uri {shlex.quote(without_secrets(settings.tracking))}", markup=False
    )
    console.print("Tag a recording of your own:")
    console.print(f"  {_program('ast-pipeline')} predict FILE --model {model}", markup=False)


def _program(name: str) -> str:
    """Return the command that starts a program of this virtual environment from this folder."""
    path = Path(sys.executable).parent / name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the main job as a program."""
    run_stage(lambda: run(parse_settings(RunSettings, __doc__, argv)))
