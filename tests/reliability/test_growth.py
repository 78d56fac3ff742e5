"""R26: a long training has no more memory, open files or shared memory at its end than near its start."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import psutil
import pytest
from forked_trainings import job_in, train

from ast_core.training.callback import StepResult, TrainerCallback

pytestmark = pytest.mark.slow

EVERY = 25
"""Steps between two samples."""
CHECKPOINTS = 20
KIB, MIB = 2**10, 2**20
MOST_GROWTH = 11 * KIB
"""Largest growth a step between the medians of the first and last samples that count."""


class ResourceMeter(TrainerCallback):
    """Callback that writes the resources of its process to a file, every `EVERY` steps."""

    def __init__(self, path: Path) -> None:
        self._process, self._path = psutil.Process(), path

    def on_step_end(self, done: StepResult) -> None:
        """Write a line of JSON: step, resident bytes, open files, threads, mapped files of /dev/shm."""
        if done.step % EVERY == 0:
            mapped = Path("/proc/self/maps").read_text(encoding="utf-8").count("/dev/shm/")
            held = [self._process.memory_info().rss, self._process.num_fds(), self._process.num_threads(), mapped]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([done.step, *held]) + "\n")


def make_meter(rank: int, folder: Path) -> TrainerCallback:
    """Return the meter of a rank."""
    return ResourceMeter(folder / f"meter-{rank}.jsonl")


@pytest.mark.timeout(600)
def test_many_steps_need_no_more_memory_files_or_threads_than_the_first(tmp_path: Path, many, measured) -> None:
    steps = many(800, 2000)
    settled = min(500, steps // 2)  # by then every buffer exists
    job = job_in(tmp_path, steps, batch_size=2, checkpoint_every_steps=steps // CHECKPOINTS)  # in two epochs
    training = train(job, 1, functools.partial(make_meter, folder=tmp_path))
    assert [rank.exitcode for rank in training.ranks] == [0], training.errors()
    rows = [json.loads(line) for line in (tmp_path / "meter-0.jsonl").read_text().splitlines()]
    assert [row[0] for row in rows] == list(range(EVERY, steps + 1, EVERY))
    counted = [row[1:] for row in rows if row[0] >= settled]
    memory, files, threads, mapped = zip(*counted, strict=True)
    early, late = sorted(memory[:5])[2], sorted(memory[-5:])[2]
    figures = {"open_files": f"{min(files)} to {max(files)}", "mappings_of_dev_shm": f"{min(mapped)} to {max(mapped)}"}
    measured("R26", steps=steps, MiB_when_settled=early / MIB, MiB_at_the_end=late / MIB, **figures)
    assert late - early < MOST_GROWTH * (steps - settled)
    assert max(files) - min(files) <= 2  # a checkpoint or metrics.jsonl may be open
    assert max(threads) - min(threads) <= 1  # the thread that reads ahead
    assert len(set(mapped)) == 1
