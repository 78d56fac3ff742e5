"""R20, prepare: a worker that is stopped is reported and replaced; one that is only busy is not reported."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import impatient_prepare
import psutil
import pytest
from listed_audio import flags, prepare_settings, require_balance, write_clips, write_list

from ast_core.shards.index import ShardIndex
from pipeline.ray_runtime import liveness

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 300


def worker_of(driver: subprocess.Popen[str]) -> psutil.Process | None:
    """Find a Ray worker of a driver that makes a part: it has a decoder."""
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "decoder_process" in " ".join(process.cmdline()) and (parent := process.parent()) is not None:
                return parent
        except psutil.NoSuchProcess:
            continue
    return None


@pytest.mark.timeout(400)
def test_a_stopped_worker_is_reported_and_replaced(
    tmp_path: Path, many: Callable[[str, str], str], measured: Callable[..., None]
) -> None:
    names = write_clips(tmp_path / "data", CLIPS)
    settings = prepare_settings(write_list(tmp_path / "data" / "list.csv", names), tmp_path / "shards", 5)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, many("tests/support/impatient_prepare.py", "pipeline/prepare.py"), *flags(settings)]
    driver = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while (worker := worker_of(driver)) is None:
            assert driver.poll() is None
            time.sleep(0.02)
        os.kill(worker.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        while worker.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < stopped + 10
            time.sleep(0.01)
        output, _ = driver.communicate(timeout=150)
        ended_s = time.monotonic() - stopped
    finally:
        driver.kill()
        if worker is not None and worker.is_running():
            worker.kill()
    assert driver.returncode == 0, output
    reported = re.search(r"orker (\S*) ?\(process (\d+) on (\S+)\) has sent no heartbeat for .* replaces it", output)
    assert reported, output
    assert (int(reported[2]), reported[3]) == (worker.pid, os.uname().nodename)
    assert output.count("has sent no heartbeat") == 1
    require_balance(ShardIndex.load(settings.shards), settings.shards, len(names))
    patience_s = many(f"{impatient_prepare.SILENT_S:.0f}", f"{liveness.SILENT_S:.0f}")
    measured("R20", patience_s=patience_s, part=reported[1], ended_after_the_stop_s=ended_s)
