"""The driver's watch over its workers: which one it kills, and which one it leaves alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import ray

from pipeline.ray_runtime import heartbeat, internals, liveness

KEY = b"heartbeat:test:0:worker"

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]


def wait_until(ready) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long  # test_stopped_prepare stops a worker of a stage
def test_a_stopped_worker_is_killed_and_its_task_runs_in_another(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(liveness, "SILENT_S", 6.0)
    monkeypatch.setattr(liveness, "LOOK_EVERY_S", 0.2)
    note = tmp_path / "first"

    def work(watch: str) -> int:
        with heartbeat.send_heartbeats(watch, "part 7"):
            if not note.exists():
                note.write_text(str(os.getpid()))
                time.sleep(600)
            return os.getpid()

    with liveness.LivenessWatch("test", 1) as watch:
        result = ray.remote(num_cpus=1, max_retries=1)(work).remote(watch.name)
        wait_until(lambda: note.exists() and note.read_text() and heartbeat.read_heartbeats(watch.name))
        first = psutil.Process(int(note.read_text()))
        first.send_signal(signal.SIGSTOP)
        assert ray.get(result, timeout=120) != first.pid
        wait_until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    assert f"Worker part 7 (process {first.pid} on {os.uname().nodename})" in capsys.readouterr().err
    assert "part 7" in watch.processes
    assert heartbeat.read_heartbeats(watch.name) == {}


def test_a_process_that_beats_again_or_has_ended_is_not_killed(monkeypatch) -> None:
    monkeypatch.setattr(liveness, "CONFIRM_S", 0.0)
    inspector = liveness.NodeInspector(ray.get_runtime_context().get_job_id(), 0.0)
    beat = b'{"process": 1, "node": "n", "node_id": "0", "task": "", "count": 4}'
    internals.kv_put(KEY, beat)
    try:
        assert inspector.kill_silent(KEY, 3, os.getpid()) == liveness.ALIVE
        assert inspector.kill_silent(KEY, 4, 1) == liveness.GONE  # no worker of this node
    finally:
        internals.kv_delete(KEY)
    assert inspector.kill_silent(KEY, 4, os.getpid()) == liveness.ALIVE  # the watch is over


def test_a_worker_of_a_node_that_is_lost_is_forgotten_without_a_report(capsys, monkeypatch) -> None:
    monkeypatch.setattr(liveness, "SILENT_S", 1.0)
    monkeypatch.setattr(liveness, "LOOK_EVERY_S", 0.2)
    with liveness.LivenessWatch("test", 1) as watch:
        key = f"{heartbeat.PREFIX}{watch.name}:worker".encode()
        lost = '{"process": 1, "node": "n", "node_id": "' + "ab" * 28 + '", "task": "rank 0", "count": 1}'
        internals.kv_put(key, lost.encode())
        wait_until(lambda: not internals.kv_get(key))
    assert capsys.readouterr().err == ""
    assert watch.processes == {"rank 0": "process 1 on n"}
