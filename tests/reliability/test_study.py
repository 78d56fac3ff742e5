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
from launches import ROOT
from studies import new_study, run_search, study_flags, trials_folder
from trainings import TIMES, rows_of, wait

from ast_core.storage.json_files import read_json

pytestmark = pytest.mark.xdist_group("ray_study")


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
    tmp_path: Path, searched: Path, ray_session, new_store, many, measured
) -> None:
    folder, trials = new_study(tmp_path), trials_folder(tmp_path)
    new_store(folder)
    for name in many(["fine/seed-0", "wide/seed-0"], []):  # the short form's first launch had finished these
        shutil.copytree(trials_folder(searched) / name, trials / name)
    copied = len(list(trials.glob("*/*/trial.json")))

    def done() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in trials.glob("*/*/trial.json")}

    def is_second_training() -> bool:
        return any(not (path.parents[2] / "trial.json").exists() for path in trials.glob("*/*/members/*/metrics.jsonl"))

    code, _ = interrupt_search(folder, is_second_training if copied else lambda: len(done()) == 1, signal.SIGKILL)
    assert code == -signal.SIGKILL
    after_kill = done()
    assert 1 <= len(after_kill) < 3

    gone_s = 0.0
    for _ in range(many(0, 1)):
        code, gone_s = interrupt_search(folder, is_second_training, signal.SIGTERM)
        assert code == 128 + signal.SIGTERM, (folder / "driver.log").read_text()
    after_end = done()
    assert after_kill.items() <= after_end.items()
    assert len(after_end) < 3

    table = run_search(folder, "--ensemble.epochs")
    assert after_end.items() <= done().items()
    assert len(done()) == 3
    assert table.best().variant in {"wide", "fine"}
    assert (folder / "best.toml").read_bytes() == (searched / "best.toml").read_bytes()
    for path in done():
        assert _read_outcome(path) == _read_outcome(trials_folder(searched) / path.relative_to(trials))
    measured("R24", launches=2 + many(0, 1), trials=3, kept_after_the_kill=len(after_kill), gone_after_sigterm_s=gone_s)


def _read_outcome(result: Path) -> Any:
    """Return a trial's metrics and curve without the times."""
    content = read_json(result, "Trial")
    curve = rows_of(result.parent / "members" / f"seed-{content['seed']}")
    return content["metrics"], [{key: value for key, value in row.items() if key not in TIMES} for row in curve]
