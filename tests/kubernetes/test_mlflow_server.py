"""Probes and allowed hosts of the MLflow server, started as in the manifest but with another database and port."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import Manifest, overlay

pytestmark = [pytest.mark.server, pytest.mark.timeout(120)]


def container(name: str) -> Manifest:
    (deployment,) = [d for d in overlay(name) if d["kind"] == "Deployment" and d["metadata"]["name"] == "mlflow"]
    return deployment["spec"]["template"]["spec"]["containers"][0]


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    changed = {
        "--host": "127.0.0.1", "--port": str(port), "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination": str(folder / "artifacts"),
    }  # fmt: skip
    own = container("multi-node")
    flags = dict(flag.split("=", 1) for flag in own["args"])
    assert set(changed) <= set(flags)
    program = [Path(sys.executable).with_name(own["command"][0]), *own["command"][1:]]
    command = [*program, *(f"{name}={value}" for name, value in {**flags, **changed}.items())]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        while status(port, "/health", "10.0.0.7:5000") is None:
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def status(port: int, path: str, host: str) -> int | None:
    """Return the HTTP code of a request that names this host; None if nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


def test_probes_reach_the_server_by_the_pods_address(port: int) -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert status(port, container("multi-node")[name]["httpGet"]["path"], "10.0.0.7:5000") == 200


@pytest.mark.parametrize(
    ("host", "code"), [("mlflow:5000", 200), ("mlflow.ast:5000", 200), ("localhost:5000", 200), ("evil.example", 403)]
)
def test_server_answers_only_requests_for_its_services_names(port: int, host: str, code: int) -> None:
    assert status(port, "/api/2.0/mlflow/experiments/search?max_results=1", host) == code


def test_overlays_start_the_server_with_the_same_flags() -> None:
    base, local = (dict(flag.split("=", 1) for flag in container(name)["args"]) for name in ("multi-node", "local"))
    assert {key for key in base if base[key] != local[key]} == {"--artifacts-destination", "--workers"}
    assert set(base) == set(local)
