"""A RayJob from its creation to its end, over HTTP to a server that replaces the Kubernetes API."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_api import KubeAPI

from ast_core.errors import UserError
from pipeline.kubeflow_steps import ray_job
from pipeline.kubeflow_steps.ray_job import run_ray_job

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeAPI]:
    with KubeAPI() as server:
        server.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server


def manifest(program: str) -> dict:
    command = f"{sys.executable} -c '{program}'"
    return {"metadata": {"generateName": "pipeline-train-", "namespace": "ast"}, "spec": {"entrypoint": command}}


def test_running_job_prints_each_line_of_its_log_once(api: KubeAPI, capsys) -> None:
    program = 'import time\nfor n in range(30): print("epoch", n, flush=True); time.sleep(0.03)'
    run_ray_job(manifest(program), poll_s=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("epoch")] == [f"epoch {n}" for n in range(30)]
    assert [line for line in lines if line.startswith("RayJob pipeline-train-1:")] == [
        "RayJob pipeline-train-1: Running RUNNING", "RayJob pipeline-train-1: Complete SUCCEEDED",
    ]  # fmt: skip
    assert sum("/log?" in request for request in api.asked) > 3  # it was read while it grew
    assert api.jobs == {}  # a job that succeeded is deleted


def test_failed_job_raises_its_message_and_is_not_deleted(api: KubeAPI) -> None:
    program = 'print("Error: There are no shards in /work."); raise SystemExit(1)'
    with pytest.raises(UserError, match=r"(?s)train-1 failed \(AppFailed\).*exit code 1.*There are no shards in /work"):
        run_ray_job(manifest(program), poll_s=0.1)
    assert list(api.jobs) == ["pipeline-train-1"]


@pytest.mark.parametrize("reason", ["DeadlineExceeded", "SubmissionFailed"])
def test_job_that_kuberay_gave_up_is_deleted_because_its_command_still_runs(api: KubeAPI, reason: str) -> None:
    """KubeRay stops nothing on a cluster that it did not make, so the command would keep its GPUs."""
    commands = []

    def give_up() -> None:
        job = api.jobs["pipeline-train-1"]
        commands.append(job.process)
        job.given_up = reason

    threading.Timer(0.5, give_up).start()
    with pytest.raises(UserError, match=rf"train-1 failed \({reason}\).*the RayJob is deleted"):
        run_ray_job(manifest("import time; time.sleep(60)"), poll_s=0.1)
    assert api.jobs == {}
    assert commands[0].poll() is not None


def test_short_outage_of_the_api_loses_no_line_of_the_log(api: KubeAPI, capsys) -> None:
    def break_api() -> None:
        while sum("GET" in request for request in api.asked) < 2:
            time.sleep(0.01)
        api.faults += [500, 503, 500]

    threading.Thread(target=break_api, daemon=True).start()
    run_ray_job(manifest('import time\nprint("one", flush=True); time.sleep(1.5); print("two")'), poll_s=0.1)
    assert api.faults == []
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line in {"one", "two"}] == ["one", "two"]


def test_long_outage_or_refusal_of_the_api_raises_a_user_error(api: KubeAPI, monkeypatch) -> None:
    monkeypatch.setattr(ray_job, "PATIENCE_S", 0.2)
    threading.Timer(0.5, lambda: api.faults.extend([500] * 100)).start()
    with pytest.raises(UserError, match=r"API has not answered for \d+ s .*pipeline-train-1 may still run"):
        run_ray_job(manifest("import time; time.sleep(60)"), poll_s=0.1)
    api.faults[:] = [404]
    with pytest.raises(UserError, match=r"404 .*Install KubeRay"):
        run_ray_job(manifest("pass"), poll_s=0.1)
    api.faults[:] = [403]
    with pytest.raises(UserError, match=r"403 .*Role"):
        run_ray_job(manifest("pass"), poll_s=0.1)


def test_deleted_job_raises_a_user_error(api: KubeAPI) -> None:
    threading.Timer(0.5, lambda: api.remove("pipeline-train-1")).start()
    with pytest.raises(UserError, match="was deleted before it ended"):
        run_ray_job(manifest("import time; time.sleep(60)"), poll_s=0.1)


def test_sigterm_of_the_step_deletes_its_job(api: KubeAPI) -> None:
    program = f"""
import json
from pipeline.kubeflow_steps.ray_job import run_ray_job
run_ray_job(json.loads({json.dumps(json.dumps(manifest("import time; time.sleep(60)")))}), poll_s=0.1)
"""
    step = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    while not any("GET" in request for request in api.asked):
        assert step.poll() is None
        time.sleep(0.05)
    command = api.jobs["pipeline-train-1"].process
    assert command.poll() is None  # it runs when the step is stopped
    step.send_signal(signal.SIGTERM)
    shown, _ = step.communicate(timeout=20)
    assert step.returncode == 128 + signal.SIGTERM
    assert "RayJob pipeline-train-1 is deleted" in shown
    assert api.jobs == {}
    assert command.poll() is not None
