"""Two launches on one run: the second is refused by name, and takes over after the first one's death.

A stale writer that wakes after the take-over cannot commit, nor remove what its successor committed.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from launches import ROOT, training_flags, wait_until
from prepared import write_shards

from ast_core.errors import UserError
from ast_core.storage import atomic_files, writer_fence
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.object_store import ObjectStore
from ast_core.weights import checkpoint
from pipeline.calibrate import calibrate
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import (
    CalibrateSettings,
    CombineSettings,
    EvaluateSettings,
    PrepareSettings,
    RegisterSettings,
    RunSettings,
    TrainSettings,
)
from pipeline.combine import combine
from pipeline.evaluate import evaluate
from pipeline.prepare import prepare
from pipeline.register import register
from pipeline.run import run
from pipeline.run_folder import folder_lock
from pipeline.train import train
from tune.search import SearchSettings, search

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")
WEIGHTS = {"weight": torch.arange(200_000, dtype=torch.float32)}


def commit_steps(member: Path, generation: str, first: int, received: Connection, stop_at: str) -> None:
    """Commit checkpoints again and again; the process stops itself at a point of a commit if the test asks for it."""
    writer_fence.enter_generation(member, generation)
    if stop_at:
        _stop_at(stop_at)
    try:
        for step in range(first, first + 100_000):
            checkpoint.save(member / "checkpoints" / f"step-{step:08d}", {"model": WEIGHTS}, {"by": generation})
            checkpoint.remove_older(member / "checkpoints", 2)
    except UserError as error:
        received.send(str(error))


def _stop_at(point: str) -> None:
    """SIGSTOP this process right before a call that a commit makes; it is a real stop, at a chosen instant."""
    owner: object
    name, owner = {
        "between write and sync": ("_sync", atomic_files),
        "between sync and rename": ("replace", Path),
        "before it moves a marker away": ("rename", Path),
        "before it removes what it moved": ("rmtree", writer_fence.shutil),
    }[point]
    before = getattr(owner, name)
    calls = iter(range(100_000))

    def stopping(*args: object, **more: object) -> object:
        if next(calls) == 7:
            os.kill(os.getpid(), signal.SIGSTOP)
        return before(*args, **more)

    setattr(owner, name, stopping)


POINTS = (
    "between write and sync",
    "between sync and rename",
    "before it moves a marker away",
    "before it removes what it moved",
)


@pytest.mark.timeout(240)
def test_a_stale_writer_that_wakes_cannot_commit(tmp_path: Path, many, fault_seed, measured) -> None:
    rng, member = random.Random(fault_seed), tmp_path / "seed-0"
    refused = temporary_files = 0
    instants = [*POINTS, *([""] * many(8, 100))]  # "" is any
    for number, point in enumerate(instants):
        stale, received = _writer(member, number * 1000, point)
        if not point:
            _wait(lambda number=number: _newest_step(member) > number * 1000, stale)
            time.sleep(rng.uniform(0, 0.05))
            os.kill(stale.pid, signal.SIGSTOP)
        _wait(lambda stale=stale: psutil.Process(stale.pid).status() == psutil.STATUS_STOPPED, stale)
        temporary_files += any(member.glob(f"{writer_fence.PREFIX}*/*"))

        generation = writer_fence.start_generation(member)
        path, _ = checkpoint.newest(member / "checkpoints")
        assert path is not None
        before = _content(member)
        os.kill(stale.pid, signal.SIGCONT)
        assert received.poll(60), f"{point}: the stale writer goes on"
        refused += "was taken over by another launch" in received.recv()
        stale.join(60)
        after = _content(member)
        gone = {name: value for name, value in before.items() if name not in after}
        assert {name: after[name] for name in after} == {name: before[name] for name in after}, point
        assert not gone, (point, gone)
        assert checkpoint.newest(member / "checkpoints") == (path, [])
        assert [folder.name for folder in member.glob(f"{writer_fence.PREFIX}*")] == [
            f"{writer_fence.PREFIX}{generation}"
        ]
    assert refused == len(instants)
    assert temporary_files
    measured("R19", stale_writers=len(instants), inside_a_commit=temporary_files, refused=refused)


@pytest.mark.timeout(120)
def test_a_writer_on_another_node_is_refused_by_the_store(tmp_path: Path, measured) -> None:
    uri = f"file://{tmp_path / 'stored'}"
    for node in ("a", "b"):
        ObjectStore(tmp_path / node, uri).attach()
    member = tmp_path / "a" / "members" / "seed-0"
    stale, received = _writer(member, 0, "")
    _wait(lambda: _newest_step(member) > 2, stale)

    generation = writer_fence.start_generation(tmp_path / "b" / "members" / "seed-0")
    assert received.poll(60), "the writer goes on"
    assert "was taken over by another launch" in received.recv()
    stale.join(60)
    assert (tmp_path / "stored" / "members" / "seed-0" / writer_fence.NOTE).read_text() == generation
    with pytest.raises(UserError, match="was taken over"):
        writer_fence.enter_generation(member, member.name)  # one that starts too late
    measured("R19", writers_refused_by_the_store=1)


def _writer(member: Path, first: int, point: str) -> tuple[ForkProcess, Connection]:
    received, tell = FORK.Pipe(duplex=False)
    generation = writer_fence.start_generation(member)
    process = FORK.Process(target=commit_steps, args=(member, generation, first, tell, point), daemon=True)
    process.start()
    return process, received


def _wait(ready: Callable[[], bool], process: ForkProcess) -> None:
    wait_until(ready, process.is_alive, 60)


def _newest_step(member: Path) -> int:
    """Of its committed checkpoints; the writer removes all but two of them."""
    return max((int(path.parent.name[5:]) for path in member.glob(f"checkpoints/*/{checkpoint.MARKER}")), default=-1)


def _content(member: Path) -> dict[str, str]:
    """Every file's bytes, but those of a writer's own folder."""
    paths = (
        path for path in member.rglob("*") if path.is_file() and not path.parent.name.startswith(writer_fence.PREFIX)
    )
    return {str(path.relative_to(member)): sha256_of(path) for path in paths}


@pytest.fixture
def holder(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], ForkProcess]]:
    """Return a function that starts a process which locks a folder."""
    processes = []

    def hold(folder: Path) -> ForkProcess:
        received, tell = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_hold, args=(folder, tell), daemon=True)
        process.start()
        processes.append(process)
        assert received.recv() == "held"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.join()


def _hold(folder: Path, tell: Connection) -> None:
    with folder_lock.lock_folder(folder, "held"):
        tell.send("held")
        signal.pause()


STAGES: dict[str, tuple[Any, type, str]] = {
    "prepare": (prepare, PrepareSettings, "shards"),
    "train": (train, TrainSettings, "run/members/seed-0"),
    "combine": (combine, CombineSettings, "run/bundles"),
    "evaluate": (evaluate, EvaluateSettings, "run/bundles"),
    "calibrate": (calibrate, CalibrateSettings, "run/bundles"),
    "register": (register, RegisterSettings, "run/bundles"),
    "run": (run, RunSettings, "run"),
    "search": (search, SearchSettings, "run/studies/overlap"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", STAGES)
def test_a_second_launch_of_a_stage_is_refused_by_name(name: str, tmp_path: Path, holder, measured) -> None:
    stage, kind, place = STAGES[name]
    write_shards(tmp_path / "shards", {"train": 6, "valid": 3, "test": 3})
    flags = f"--recipe esc50_small --run-dir {tmp_path / 'run'} --shards {tmp_path / 'shards'}"
    flags += f" --tracking sqlite:///{tmp_path / 'mlflow.db'}"
    if any(field.name == "data" for field in dataclasses.fields(kind)):
        flags += " --data.train-splits train --data.validation-split valid --data.test-split test"
    settings = parse_settings(kind, "", flags.split())
    first = holder(tmp_path / place)

    began = time.monotonic()
    named = rf"process {first.pid} on {re.escape(os.uname().nodename)}, since 2\d\d\d-.* UTC"
    with pytest.raises(UserError, match=named):
        stage(settings)
    seconds = time.monotonic() - began
    assert not (tmp_path / "mlflow.db").exists()  # a launch that is refused starts no run

    first.kill()
    first.join()
    with folder_lock.lock_folder(tmp_path / place, "taken over"):  # at once
        pass
    measured("R19", stage=name, refused_s=seconds)


@pytest.mark.timeout(120)
def test_a_second_launch_as_a_user_does_it(tmp_path: Path, holder, measured) -> None:
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    first = holder(tmp_path / "run" / "members" / "seed-0")
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *training_flags(tmp_path, "run", 3)]
    began = time.monotonic()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"is in use by held, process {first.pid} on" in second.stderr
    assert "Traceback" not in second.stderr
    measured("R19", second_program_ended_s=time.monotonic() - began)


def test_stages_of_one_process_share_what_it_holds(tmp_path: Path) -> None:
    with folder_lock.lock_folder(tmp_path, "run"), folder_lock.lock_folder(tmp_path, "run"):
        pass
    with folder_lock.lock_folder(tmp_path, "run"):
        assert f"process {os.getpid()}" in (tmp_path / folder_lock.HOLDER).read_text()
