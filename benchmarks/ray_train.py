"""Cost of Ray Train for each step: epochs of `pipeline.train` with one worker against those of the bare trainer.

python benchmarks/ray_train.py
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from peers.comparison import arguments, print_machine, verdict
from peers.made_data import write_shards

from ast_core.config import FrontEndConfig
from ast_core.training.trainer import fit
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.ray_runtime import connection
from pipeline.train import job_of, train

GOAL = 0.02
FRONT_END = FrontEndConfig(target_frames=128)
FLAGS = """
    --recipe esc50_small --workers 1 --experiment ray-train --data.train-splits train --data.test-split test
    --front-end.target-frames 128 --model.patch-freq 16 --model.patch-time 16 --model.freq-stride 10
    --model.time-stride 10 --optim.loss bce --optim.average-first-epoch 1
"""


@dataclasses.dataclass(frozen=True)
class Size:
    """Amount of training."""

    steps: int
    """Steps in an epoch."""
    batch: int
    """Clips in a step."""
    epochs: int
    """Epochs in a turn; the first one warms up and is not counted."""
    turns: int
    """Turns of each way."""


FULL, QUICK = Size(steps=80, batch=4, epochs=5, turns=2), Size(steps=4, batch=2, epochs=2, turns=1)


def settings_in(folder: Path, name: str, size: Size, epochs: int) -> TrainSettings:
    """Return the settings of a run over the synthetic shards."""
    flags = [*FLAGS.split(), "--shards", str(folder / "shards"), "--run-dir", str(folder / name)]
    flags += ["--tracking", f"sqlite:///{folder / 'mlflow.db'}"]
    flags += ["--optim.epochs", str(epochs), "--optim.batch-size", str(size.batch)]
    return parse_settings(TrainSettings, "", flags)


def read_epoch_seconds(settings: TrainSettings, size: Size) -> list[float]:
    """Return the seconds of the last turn's epochs, without its first one."""
    lines = (job_of(settings).folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines[1 - size.epochs :]]


def take_turns(folder: Path, size: Size) -> tuple[list[float], list[float]]:
    """Continue both runs turn by turn; return the seconds of their epochs, bare and under Ray."""
    bare, under_ray = [], []
    for turn in range(1, size.turns + 1):
        settings = settings_in(folder, "bare", size, turn * size.epochs)
        torch.set_num_threads(os.cpu_count() or 1)  # the number that a single worker uses
        fit(job_of(settings), 0, 1, torch.device("cpu"))
        bare += read_epoch_seconds(settings, size)
        settings = settings_in(folder, "under-ray", size, turn * size.epochs)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(settings)
        under_ray += read_epoch_seconds(settings, size)
    return bare, under_ray


def report(bare: list[float], under_ray: list[float], steps: int) -> None:
    """Print the median and least time of a step, and the ratio of the least times.

    Other programs on the machine only add time, so the least times compare best.
    """
    own, theirs = ([1000 * value / steps for value in seconds] for seconds in (bare, under_ray))
    texts = [f"{statistics.median(times):.3g} ms (least {min(times):.3g})" for times in (own, theirs)]
    print(f"bare {texts[0]}, under Ray Train {texts[1]}: wall time of a step; medians of {len(own)} epochs each")
    ratio = min(theirs) / min(own)
    print(f"ratio {ratio:.3f} of the least; goal under {1 + GOAL:g}: {verdict(ratio < 1 + GOAL)}")


def main() -> None:
    """Train a small model on synthetic shards, on one Ray with two CPUs."""
    args: argparse.Namespace = arguments(__doc__).parse_args()
    size = QUICK if args.quick else FULL
    # Ray's workers run at a lower priority than the bare loop by default.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, Ray's spelling
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", {"train": size.steps * size.batch, "test": 8}, FRONT_END, classes=4)
        with connection.connect("", 2):
            report(*take_turns(folder, size), size.steps)
    print_machine()


if __name__ == "__main__":
    main()
