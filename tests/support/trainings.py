"""Trainings in this process that meet faults while they run, and what must be equal in the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import forked_trainings
import psutil
import torch
from launches import training_flags

from ast_core.config import Job
from ast_core.storage.atomic_files import sha256_of
from ast_core.training.trainer import fit
from ast_core.weights import checkpoint
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.ray_runtime.heartbeat import read_heartbeats
from pipeline.scoring.distillation import score_teacher
from pipeline.train import job_of, train

EPOCHS = 30
LIMIT_S = 240.0
"""For whatever is waited for; on a calm machine it takes seconds, and on a busy one a group of workers a minute."""
TIMES = {"seconds", "clips_per_s"}
"""Columns of the curve that no two runs share."""
WORKER = "ray::RayTrainWorker"
"""Title of a rank's process."""


def trained(folder: Path, run: str, *more: str) -> Path:
    """Train the member in this process to its last epoch."""
    return train(parse_settings(TrainSettings, "", [*training_flags(folder, run, EPOCHS), *more]))


def fit_without_ray(settings: TrainSettings, workers: int = 1) -> Path:
    """Train a member without Ray: one rank in this process, or several in processes that start in a second.

    For tests of what comes after a training. With several ranks the bits are those of the stage.

    Args:
        settings: settings of the stage.
        workers: number of ranks.

    Returns:
        The member's folder.
    """
    job = dataclasses.replace(job_of(settings), teacher_scores=score_teacher(settings))
    supervise_without_ray(job, workers)
    return job.folder


def supervise_without_ray(job: Job, workers: int, *_: object) -> None:
    """Run the ranks of a training to the end, in the place of `training_supervisor.supervise`."""
    job.folder.mkdir(parents=True, exist_ok=True)
    if workers == 1:  # it need not have the same bits, only be fast
        torch.set_num_threads(1)
        fit(job, 0, 1, torch.device("cpu"))
        return
    threads = max(1, (os.cpu_count() or 1) // workers)  # as many as `train_rank` gives them
    training = forked_trainings.train(job, workers, threads=threads)
    assert [rank.exitcode for rank in training.ranks] == [0] * workers, training.errors()


def train_without_ray(settings: TrainSettings) -> Path:
    """Train a member with `fit_without_ray`, then let the stage add its settings, its MLflow run and the metrics."""
    fit_without_ray(settings)
    return train(settings)


def outcome(member: Path, epochs: int = EPOCHS) -> dict[str, Any]:
    """Return what must be equal to the bit: weights of all epochs, newest weights, optimiser, curve without times."""
    newest, passed_over = checkpoint.newest(member / "checkpoints")
    assert newest is not None
    assert not passed_over
    files = [*member.glob("epochs/*/*.safetensors"), *newest.glob("*.safetensors")]
    curve = [{key: value for key, value in row.items() if key not in TIMES} for row in rows_of(member)]
    assert [row["epoch"] for row in curve] == list(range(1, epochs + 1))
    return {str(path.relative_to(member)): sha256_of(path) for path in sorted(files)} | {"curve": curve}


def rows_of(member: Path) -> list[dict[str, Any]]:
    """Rows of its curve on disk."""
    return [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]


def epochs_of(member: Path) -> int:
    """Epochs that are committed."""
    return max(checkpoint.epoch_folders(member / "epochs"), default=0)


def ranks_of(member: Path) -> dict[int, psutil.Process]:
    """Return the living processes of a member's newest training, by rank."""
    found = {}
    for heartbeat in read_heartbeats(f"train:{member}").values():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[int(heartbeat.task.removeprefix("rank "))] = psutil.Process(heartbeat.process)
    return found


def gone(process: psutil.Process) -> bool:
    """Return whether the process has ended, also if its parent has not asked for its exit code yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def titled(title: str, among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """Return the processes whose title begins so, by default among the descendants of this one."""
    found = []
    for process in psutil.Process().children(recursive=True) if among is None else among:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process] if " ".join(process.cmdline()).startswith(title) else []
    return found


def wait(ready: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> float:
    """Wait until `ready()` is true, and return the seconds that it took.

    It pauses four times as long as a look takes: a look at all processes takes CPU time from those under test.
    """
    began = looked = time.monotonic()
    while not ready():
        assert time.monotonic() - began < limit_s, f"waited {limit_s} s for {what}"
        time.sleep(max(0.005, 4 * (time.monotonic() - looked)))
        looked = time.monotonic()
    return time.monotonic() - began


@contextlib.contextmanager
def run_fault(fault: Callable[[], None]) -> Iterator[None]:
    """Run a fault in a thread while the body runs; its failure is raised here."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            fault()
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    yield
    thread.join(LIMIT_S)
    assert not failures, failures[0]
    assert not thread.is_alive(), "the training ended before its faults were over"
