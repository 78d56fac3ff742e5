"""Probes and allowed hosts of the MLflow server, started as in the manifest but with another database and port."""

from __future__ import annotations

import http.client

import pytest
from manifests import tracker_container, tracker_flags
from servers import LocalTracker


def status(port: int, path: str, host: str) -> int:
    """Return the HTTP code of a request that names this host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host})
    code = connection.getresponse().status
    connection.close()
    return code


def test_probes_reach_the_server_by_the_pods_address(tracker: LocalTracker) -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = tracker_container("multi-node")[name]["httpGet"]["path"]
        assert status(tracker.port, path, "10.0.0.7:5000") == 200


@pytest.mark.parametrize(
    ("host", "code"),
    [
        *((host, 200) for host in ("mlflow:5000", "mlflow.ast:5000", "mlflow.ast.svc:5000", "localhost:5000")),
        *((host, 200) for host in ("mlflow.ast.svc.cluster.local:5000", "127.0.0.1:5000")),
        ("evil.example", 403),
    ],
)
def test_server_answers_only_requests_for_its_services_names(tracker: LocalTracker, host: str, code: int) -> None:
    assert status(tracker.port, "/api/2.0/mlflow/experiments/search?max_results=1", host) == code


@pytest.mark.parametrize("name", ["multi-node", "local"])
def test_server_starts_no_processes_for_jobs_and_its_probes_have_time(name: str) -> None:
    """Seven processes of 1.4 GiB, which run code for clients without a login."""
    container = tracker_container(name)
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    probes = (container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe"))
    assert all(probe["timeoutSeconds"] >= 5 for probe in probes)


def test_overlays_start_the_server_with_the_same_flags() -> None:
    base, local = (tracker_flags(name) for name in ("multi-node", "local"))
    assert tracker_container("multi-node")["command"] == ["mlflow", "server"]
    assert {key for key in base if base[key] != local[key]} == {"--artifacts-destination", "--workers"}
    assert set(base) == set(local)
