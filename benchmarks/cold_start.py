"""Wall time from the start of `python pipeline/train.py`, with its own Ray and MLflow store, to its first step.

The lower bound is printed next to it: a bare Ray Train with two workers whose function only imports torch.

python benchmarks/cold_start.py
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peers.comparison import arguments, print_machine, verdict
from peers.made_data import write_shards

from ast_core.config import FrontEndConfig

GOAL_S = 20
RUNS = 3
ROOT = Path(__file__).resolve().parents[1]
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

ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
scaling, run = ScalingConfig(num_workers=2), RunConfig(storage_path=sys.argv[1])
TorchTrainer(begun, train_loop_config={"folder": sys.argv[1]}, scaling_config=scaling, run_config=run).fit()
"""


def measure_bare_s(folder: Path) -> float:
    """Return the seconds until the first of two bare Ray Train workers runs."""
    folder.mkdir()
    return _time_until([sys.executable, "-c", BARE, str(folder)], folder, (folder / "begun").exists)


def measure_first_step_s(shards: Path, folder: Path) -> float:
    """Return the seconds until the first step's checkpoint exists, a few milliseconds after the step.

    The run is then left to end by itself.
    """
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *FLAGS.split()]
    command += ["--shards", str(shards), "--run-dir", str(folder), "--tracking", f"sqlite:///{folder / 'mlflow.db'}"]
    checkpoints = folder / "members" / "seed-0" / "checkpoints"
    folder.mkdir()
    return _time_until(command, folder, lambda: any(checkpoints.glob("step-*/COMMITTED.json")))


def _time_until(command: list[str], folder: Path, ready: Callable[[], bool]) -> float:
    """Start a program and return the seconds until `ready` returns True."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (folder / "log").open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)  # noqa: S603
        try:
            while not ready():
                if process.poll() is not None:
                    raise SystemExit(f"{command[1]} ended before it was ready:\n{(folder / 'log').read_text()}")
                time.sleep(0.005)
            seconds = time.monotonic() - started
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.terminate()
            process.wait()
    return seconds


def main() -> None:
    """Start the demo's model on two workers three times, and print the median."""
    args = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        shards = write_shards(Path(name) / "shards", {"train": 16, "test": 8}, FRONT_END, classes=4)
        count = range(1 if args.quick else RUNS)
        runs = [measure_first_step_s(shards, Path(name) / f"run-{number}") for number in count]
        bare = statistics.median(measure_bare_s(Path(name) / f"bare-{number}") for number in count)
    middle = statistics.median(runs)
    print(f"first step after {', '.join(f'{seconds:.1f}' for seconds in runs)} s, ", end="")
    print(f"median {middle:.1f} s; goal under {GOAL_S} s: {verdict(middle < GOAL_S)}")
    print(f"a bare Ray Train's workers run after {bare:.1f} s; ours add {middle - bare:.1f} s")
    print_machine()


if __name__ == "__main__":
    main()
