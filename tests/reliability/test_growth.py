"""R26: a long training has no more memory, open files or shared memory at its end than near its start."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import psutil
import pytest
from forked_trainings import job_in, train

from ast_core.training.callback import StepResult, TrainerCallback

STEPS, EVERY, SETTLED = 2000, 50, 500
"""Steps, steps between two samples, and the step from which samples count: by then every buffer exists."""
MIB = 2**20
MOST_GROWTH = 16 * MIB
"""Largest growth between the medians of the first and last samples that count; a leak of 11 KiB a step exceeds it."""


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
def test_two_thousand_steps_need_no_more_memory_files_or_threads_than_five_hundred(tmp_path: Path, measured) -> None:
    job = job_in(tmp_path, STEPS, batch_size=2, checkpoint_every_steps=100)  # two epochs, each evaluated and kept
    training = train(job, 1, functools.partial(make_meter, folder=tmp_path))
    assert [rank.exitcode for rank in training.ranks] == [0], training.errors()
    rows = [json.loads(line) for line in (tmp_path / "meter-0.jsonl").read_text().splitlines()]
    assert [row[0] for row in rows] == list(range(EVERY, STEPS + 1, EVERY))
    settled = [row for row in rows if row[0] >= SETTLED]
    memory, files, threads, mapped = zip(*(row[1:] for row in settled), strict=True)
    early, late = sorted(memory[:5])[2], sorted(memory[-5:])[2]
    figures = {"open_files": f"{min(files)} to {max(files)}", "mappings_of_dev_shm": f"{min(mapped)} to {max(mapped)}"}
    measured("R26", steps=STEPS, MiB_at_500=early / MIB, MiB_at_the_end=late / MIB, **figures)
    assert late - early < MOST_GROWTH
    assert max(files) - min(files) <= 2  # a checkpoint or metrics.jsonl may be open
    assert max(threads) - min(threads) <= 1  # the thread that reads ahead
    assert len(set(mapped)) == 1
