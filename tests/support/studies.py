"""A study of two variants and three trials, each of a few seconds on one worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import without_ray
from forked_trainings import FORKS
from prepared import BINS, FRAMES, write_shards
from ray import cloudpickle

from pipeline.cli.command_line import parse_settings
from pipeline.ray_runtime import internals
from tune import search as search_module
from tune import trial as trial_module
from tune import trial_runs
from tune.search import SearchSettings, search
from tune.study_report import Table
from tune.trial import Trial
from tune.trial_queue import DrawnTrials

STUDY = """
title = "Time strides"
[variants.wide]
model.time_stride = 8
[variants.fine]
model.time_stride = 4
repeats = 1
"""


def new_study(folder: Path) -> Path:
    """Write shards and the study's file, and return the folder."""
    write_shards(folder / "shards", {"train": 42, "test": 21})
    (folder / "strides.toml").write_text(STUDY)
    return folder


def study_flags(folder: Path, *more: str) -> list[str]:
    """Return flags for `search.py`."""
    text = f"""
    --recipe esc50_small --run-dir {folder / "run"} --shards {folder / "shards"} --workers 1
    --tracking sqlite:///{folder / "mlflow.db"} --experiment test --data.train-splits train --data.test-split test
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    --model.patch-freq {BINS} --model.freq-stride {BINS} --study {folder / "strides.toml"} --repeats 2
    --augment.freq-mask-bins 4 --augment.time-mask-frames 8
    --optim.epochs 3 --optim.batch-size 6 --optim.average-first-epoch 2
    """
    return [*text.split(), "--winner", str(folder / "best.toml"), *more]


def run_search(folder: Path, *more: str) -> Table:
    """Run the search in this process and return the table."""
    table, _ = search(parse_settings(SearchSettings, "", study_flags(folder, *more)))
    return table


def search_here(folder: Path, *more: str) -> Table:
    """Run the search without Ray: its trials train and score in this process, one after the other."""
    with without_ray.stages_without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "run_trials", _run_trials_here)
        patch.setattr(trial_module.tune, "report", lambda _: None)
        return run_search(folder, *more)


def _run_trials_here(
    settings: SearchSettings, study: object, recipes: object, trials: Sequence[Trial], drawn: DrawnTrials | None = None
) -> None:
    waiting = (trial for trial in trials if trial.load_result() is None)
    with ThreadPoolExecutor(1) as thread:  # MLflow's current run is the thread's, and here the study's
        while trial := next(waiting, None) if drawn is None else drawn.next_trial():
            thread.submit(trial_module.run_trial, {"trial": trial}).result()
            if drawn is not None:
                drawn.end_trial(trial)


def train_in_trials(
    patch: pytest.MonkeyPatch, run_trial: Callable[[dict[str, Any]], None] = without_ray.run_trial_without_ray
) -> None:
    """Let the processes of a study's trials train and score by themselves, not in workers of their own.

    Args:
        patch: what ends with the test.
        run_trial: function of a trial.
    """
    for name in ("without_ray", run_trial.__module__):
        cloudpickle.register_pickle_by_value(sys.modules[name])  # the trials' processes do not find modules of tests
    patch.setattr(trial_runs, "run_trial", run_trial)


def _search(folder: Path, flags: Sequence[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    train_in_trials(pytest.MonkeyPatch())
    with internals.bind_to_loopback():  # where the tests' own Ray is
        run_search(folder, *flags)


def start_search(folder: Path, log: Path, *more: str) -> BaseProcess:
    """Start a driver of the search, which a test can kill; its output goes to `log`."""
    process = FORKS.Process(target=_search, args=(folder, more, log))
    process.start()
    return process


def trials_folder(folder: Path) -> Path:
    """Return the folder of the trials, which are VARIANT/seed-N in it."""
    return folder / "run" / "studies" / "strides" / "trials"
