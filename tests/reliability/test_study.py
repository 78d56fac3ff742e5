"""A study whose driver gets SIGKILL or SIGTERM: the next launch runs the rest and finds the same winner."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from launches import ROOT
from studies import new_study, run_search, search_here, start_search, study_flags, trials_folder
from trainings import TIMES, rows_of, titled, wait

from ast_core.storage.json_files import read_json
from tune.study_report import Table

TRIAL = "ray::ImplicitFunc.train"
"""Title of a trial's process."""


def interrupt_search(folder: Path, ready: Callable[[], bool], number: signal.Signals) -> tuple[int, float]:
    """Launch the study as a user does, and signal its driver once `ready()` is true.

    Returns:
        The driver's exit code, and the seconds from the signal to its end.
    """
    command = [
        sys.executable,
        str(ROOT / "tune" / "search.py"),
        *study_flags(folder, "--ensemble.epochs"),
    ]  # as `searched`
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (folder / "driver.log").open("ab") as log:
        driver = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    family: list[psutil.Process] = []
    try:
        wait(lambda: ready() or driver.poll() is not None, "the study")
        assert driver.poll() is None, (folder / "driver.log").read_text()
        family = psutil.Process(driver.pid).children(recursive=True)
        sent = time.monotonic()
        driver.send_signal(number)
        code = driver.wait(30)
        return code, time.monotonic() - sent
    finally:
        driver.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        driver.wait()


@pytest.mark.timeout(900)
def test_interrupted_study_keeps_its_trials_and_finds_the_same_winner(
    tmp_path: Path, searched: Path, ray_session, new_store, measured
) -> None:
    """Check a killed driver, whose trial trains in its own process; two of three were finished before.

    The next launch trains without Ray; `tests/tune/test_search.py` runs a search again with Ray.
    """
    folder, trials = new_study(tmp_path), trials_folder(tmp_path)
    new_store(folder)
    for name in ("fine/seed-0", "wide/seed-0"):
        shutil.copytree(trials_folder(searched) / name, trials / name)
    kept = _read_times(trials)
    address = ray.get_runtime_context().gcs_address
    driver = start_search(folder, folder / "driver.log", "--ensemble.epochs", "--address", address)
    member = trials / "wide" / "seed-1" / "members" / "seed-1"
    wait(lambda: member.is_dir() or not driver.is_alive(), "the third trial")
    assert driver.is_alive(), (folder / "driver.log").read_text()
    driver.kill()
    driver.join()
    wait(lambda: not titled(TRIAL), "the end of the killed driver's trial")
    assert _read_times(trials) == kept

    _check_rest(folder, searched, kept, search_here(folder, "--ensemble.epochs"))
    measured("R24", launches=2, trials=3, kept_after_the_kill=len(kept))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_study_that_gets_sigkill_and_sigterm_keeps_its_trials_and_finds_the_same_winner(
    tmp_path: Path, ray_session, new_store, measured
) -> None:
    """Check launches as a user does them, whose trials train in workers of Ray Train."""
    whole, folder = new_study(tmp_path / "whole"), new_study(tmp_path / "killed")
    trials = trials_folder(folder)
    for path in (whole, folder):
        new_store(path)
    run_search(whole, "--ensemble.epochs")

    def is_second_training() -> bool:
        return any(not (path.parents[2] / "trial.json").exists() for path in trials.glob("*/*/members/*/metrics.jsonl"))

    code, _ = interrupt_search(folder, lambda: len(_read_times(trials)) == 1, signal.SIGKILL)
    assert code == -signal.SIGKILL
    after_kill = _read_times(trials)
    assert 1 <= len(after_kill) < 3
    code, gone_s = interrupt_search(folder, is_second_training, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, (folder / "driver.log").read_text()
    after_end = _read_times(trials)
    assert after_kill.items() <= after_end.items()
    assert len(after_end) < 3
    _check_rest(folder, whole, after_end, run_search(folder, "--ensemble.epochs"))
    measured("R24", launches=3, trials=3, kept_after_the_kill=len(after_kill), gone_after_sigterm_s=gone_s)


def _read_times(trials: Path) -> dict[Path, int]:
    """Return the time of each finished trial's result."""
    return {path: path.stat().st_mtime_ns for path in trials.glob("*/*/trial.json")}


def _check_rest(folder: Path, whole: Path, kept: dict[Path, int], table: Table) -> None:
    """Check that the last launch kept the finished trials, and made the same results as an undisturbed study."""
    trials = trials_folder(folder)
    done = _read_times(trials)
    assert kept.items() <= done.items()
    assert len(done) == 3
    assert table.best().variant in {"wide", "fine"}
    assert (folder / "best.toml").read_bytes() == (whole / "best.toml").read_bytes()
    for path in done:
        assert _read_outcome(path) == _read_outcome(trials_folder(whole) / path.relative_to(trials))


def _read_outcome(result: Path) -> Any:
    """Return a trial's metrics and curve without the times."""
    content = read_json(result, "Trial")
    curve = rows_of(result.parent / "members" / f"seed-{content['seed']}")
    return content["metrics"], [{key: value for key, value in row.items() if key not in TIMES} for row in curve]
