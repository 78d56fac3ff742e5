"""The main job: prepare, train each member, combine, evaluate, register, predict, from one recipe.

python pipeline/run.py --recipe demo
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from ast_core.files import write_json
from ast_core.manifest import load_manifest
from pipeline import cluster
from pipeline.combine import combine
from pipeline.evaluate import evaluate
from pipeline.predict import predict
from pipeline.prepare import prepare
from pipeline.register import register
from pipeline.settings import (
    CombineSettings,
    EvaluateSettings,
    PredictSettings,
    PrepareSettings,
    RegisterSettings,
    RunSettings,
    TrainSettings,
    parse,
    run_stage,
    section_values,
)
from pipeline.train import train

ResultT = TypeVar("ResultT")
SHOWN_RECORDINGS = 3
"""Test recordings that are predicted at the end, for a person to check by ear."""


def run(settings: RunSettings) -> None:
    """All stages in order; run again, each does only what is not done yet.

    Raises:
        UserError: as its stages do.
    """
    seconds: dict[str, float] = {}

    def timed(name: str, stage: Callable[[], ResultT]) -> ResultT:
        Console().rule(name)
        started = time.monotonic()
        result = stage()
        seconds[name] = time.monotonic() - started
        return result

    with cluster.connected(settings.address, settings.workers):
        timed("prepare", lambda: prepare(section_values(settings, PrepareSettings)))
        for seed in settings.ensemble.seeds:
            member = dataclasses.replace(section_values(settings, TrainSettings), seed=seed)
            timed(f"train seed {seed}", lambda member=member: train(member))  # type: ignore[misc]
        bundles = timed("combine", lambda: combine(section_values(settings, CombineSettings)))
        summary = timed("evaluate", lambda: evaluate(section_values(settings, EvaluateSettings)))
        timed("register", lambda: register(section_values(settings, RegisterSettings)))
    recordings = _test_recordings(settings)
    model = f"models:/{settings.model_name}@champion"
    again = PredictSettings(inputs=recordings, model=model, top_k=3, tracking=settings.tracking)
    timed("predict", lambda: predict(again))
    write_json(settings.run_dir / "seconds.json", seconds)
    _report(settings, seconds, summary, bundles[-1])


def _test_recordings(settings: RunSettings) -> tuple[Path, ...]:
    """The first recordings of the test split that have a file."""
    synthetic = settings.data.source == "synthetic"
    source = settings.run_dir / "audio" if synthetic else Path(settings.data.source)
    clips = load_manifest(source, "audioset" if synthetic else settings.data.layout).clips
    found = [Path(clip.path) for clip in clips if clip.split == settings.data.test_split and clip.path]
    return tuple(found[:SHOWN_RECORDINGS])


def _report(
    settings: RunSettings, seconds: dict[str, float], summary: dict[str, dict[str, float]], bundle: Path
) -> None:
    table = Table(title="time")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    table.add_row("all", f"{sum(seconds.values()):.1f}", style="bold")
    Console().print(table)
    score = summary[bundle.name]
    key = "accuracy" if "accuracy" in score else "mAP"
    lines = [
        f"{settings.model_name}@champion: test {key} [bold]{score[key]:.3f}[/] (chance {score[f'chance_{key}']:.3f}).",
        f"Everything of this run: {settings.run_dir}",
        "",
        "See runs, curves and the registry (then open http://127.0.0.1:5000/#/models):",
        f"  .venv/bin/mlflow server --host 127.0.0.1 --backend-store-uri {shlex.quote(settings.tracking)}",
        "Tag a recording of your own:",
        f"  .venv/bin/python pipeline/predict.py FILE --model models:/{settings.model_name}@champion",
    ]
    Console(soft_wrap=True).print(Panel("\n".join(lines), title="done"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the main job as a program."""
    run_stage(lambda: run(parse(RunSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.run import main

    main()
