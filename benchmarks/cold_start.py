"""Wall time from the start of `python pipeline/train.py`, with its own Ray and MLflow store, to its first step.

The peer is a bare Ray Train with Ray's default settings and two workers, whose function only imports torch. The parts
are read off the processes of both: when Ray's node process, a worker, the controller and both ranks exist.

python benchmarks/cold_start.py
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from peers.comparison import arguments, print_machine, verdict
from peers.made_data import write_shards

from ast_core.config import FrontEndConfig

RUNS = 3
ROOT = Path(__file__).resolve().parents[1]
LOOK_EVERY_S = 0.05
PARTS = {
    "Ray's processes": ("raylet/raylet ", 1),
    "a worker process": ("ray::", 1),
    "the controller": ("Controller", 1),
    "both ranks": ("ray::RayTrainWorker", 2),
}
"""Text in the command lines of the processes that end a part, and the number of these processes."""
FIRST_STEP = "first step"
Timeline = dict[str, float]
"""Seconds from the start of the program to the end of each part."""
FRONT_END = FrontEndConfig(target_frames=400)
FLAGS = """
    --recipe demo --workers 2 --experiment cold-start --data.train-splits train --data.test-split test
    --optim.epochs 1 --optim.average-first-epoch 1 --optim.batch-size 4 --optim.checkpoint-every-steps 1
"""

BARE = """
import sys
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def begun(config):
    import pathlib
    import torch
    (pathlib.Path(config["folder"]) / "begun").touch()

ray.init(address="local", num_cpus=2)
scaling, run = ScalingConfig(num_workers=2), RunConfig(storage_path=sys.argv[1])
TorchTrainer(begun, train_loop_config={"folder": sys.argv[1]}, scaling_config=scaling, run_config=run).fit()
"""


def measure_bare(folder: Path) -> Timeline:
    """Return when the parts of a bare Ray Train ended, the last one when the first of two workers runs."""
    folder.mkdir()
    return _time_parts([sys.executable, "-c", BARE, str(folder)], folder, (folder / "begun").exists)


def measure_training(shards: Path, folder: Path) -> Timeline:
    """Return when the parts ended, the last one when the first step's checkpoint exists, milliseconds after the step.

    The run is then left to end by itself.
    """
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *FLAGS.split()]
    command += ["--shards", str(shards), "--run-dir", str(folder), "--tracking", f"sqlite:///{folder / 'mlflow.db'}"]
    checkpoints = folder / "members" / "seed-0" / "checkpoints"
    folder.mkdir()
    return _time_parts(command, folder, lambda: any(checkpoints.glob("step-*/COMMITTED.json")))


def _time_parts(command: list[str], folder: Path, ready: Callable[[], bool]) -> Timeline:
    """Start a program and return when each part ended; `ready` returns True at the end of the last."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    found: Timeline = {}
    with (folder / "log").open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)  # noqa: S603
        try:
            while not ready():
                if process.poll() is not None:
                    raise SystemExit(f"{command[1]} ended before it was ready:\n{(folder / 'log').read_text()}")
                _note_parts(found, process.pid, started)
                time.sleep(LOOK_EVERY_S)
            found[FIRST_STEP] = time.monotonic() - started
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.terminate()
            process.wait()
    return found


def _note_parts(found: Timeline, program: int, started: float) -> None:
    """Note the parts that have ended since the last look."""
    if len(found) == len(PARTS):
        return
    lines = []
    for process in psutil.Process(program).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    for part, (text, count) in PARTS.items():
        if part not in found and sum(text in line for line in lines) >= count:
            found[part] = time.monotonic() - started


def _print_parts(title: str, runs: list[Timeline]) -> None:
    """Print the median end of each part and its share."""
    before = 0.0
    print(f"{title}:")
    for part in (*PARTS, FIRST_STEP):
        end = statistics.median(run.get(part, math.nan) for run in runs)
        print(f"  {part:20} after {end:5.1f} s ({end - before:+.1f} s)")
        before = end


def main() -> None:
    """Start the demo's model on two workers and the bare Ray Train three times each, and print the medians."""
    args = arguments(__doc__).parse_args()
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as name:
        shards = write_shards(Path(name) / "shards", {"train": 16, "test": 8}, FRONT_END, classes=4)
        for number in range(1 if args.quick else RUNS):
            ours.append(measure_training(shards, Path(name) / f"run-{number}"))
            bare.append(measure_bare(Path(name) / f"bare-{number}"))
    _print_parts("our training", ours)
    _print_parts("a bare Ray Train", bare)
    ratio = statistics.median(run[FIRST_STEP] for run in ours) / statistics.median(run[FIRST_STEP] for run in bare)
    print(f"first step after {ratio:.2f} times the start of a bare Ray Train; goal at most 1: {verdict(ratio <= 1)}")
    print_machine()


if __name__ == "__main__":
    main()
