"""The server of k8s/serve-local on a real Kubernetes, with the commands of docs/guides/kubernetes.md.

It serves the model that the demo registered, so these tests follow those of test_product_on_kubernetes.py.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from one_node import Cluster
from pods import newest_pod, restricted_pod, wait_until

pytestmark = [pytest.mark.timeout(3600), pytest.mark.ray, pytest.mark.server]
PROGRAM = (Path(__file__).parent / "ask_server.py").read_text(encoding="utf-8")
REPLICAS = "app=ast-serve,ray.io/node-type=worker"
CLIENT = {"ast-pipeline/serve-client": "true", "ast-pipeline/mlflow-client": "true"}
STRAY = {"ast-pipeline/mlflow-client": "true"}
TOKEN = secrets.token_hex(16)


@pytest.fixture(scope="module", autouse=True)
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Apply the server, wait until it is ready, and remove it at the end."""
    tokens = tmp_path_factory.mktemp("server") / "FILE"
    tokens.write_text(f"tests {TOKEN}\n", encoding="utf-8")
    cluster.shell(f"kubectl create secret generic serve-tokens -n ast --from-file=tokens={tokens}")
    try:
        cluster.kubectl("apply", "-k", "k8s/serve-local")
        cluster.kubectl(
            "wait", "-n=ast", "rayservice/serve", "--for=condition=Ready", "--timeout=900s", check=False, limit_s=1000
        )
        state = cluster.kubectl("describe", "-n=ast", "rayservice/serve") + cluster.kubectl("get", "pods", "-n=ast")
        cluster.kubectl("wait", "-n=ast", "pod", f"-l={REPLICAS}", "--for=condition=Ready", "--timeout=300s")
        assert "True" in _ready(cluster), state
        yield
    finally:
        cluster.kubectl("delete", "-k", "k8s/serve-local", "--ignore-not-found")
        cluster.kubectl("delete", "secret", "serve-tokens", "-n=ast")


@pytest.fixture(scope="module", autouse=True)
def clients(cluster: Cluster, server: None) -> Iterator[None]:
    """Start a pod that may use the server, and one that may not."""
    names = {"client": CLIENT, "stray": STRAY}
    for name, labels in names.items():
        pod = restricted_pod(name, "ast", labels, ["sleep", "infinity"])
        cluster.run("kubectl", "apply", "-f", "-", input_text=yaml.safe_dump(pod))
    try:
        for name in names:
            cluster.kubectl("wait", "-n=ast", f"pod/{name}", "--for=condition=Ready", "--timeout=300s")
        yield
    finally:
        cluster.kubectl("delete", "pods", "-n=ast", "--grace-period=1", *names)


@pytest.mark.parametrize(("pod", "reaches"), [("client", True), ("stray", False)])
def test_only_pods_with_the_label_of_clients_reach_the_server(cluster: Cluster, pod: str, reaches: bool):
    said = _run(cluster, pod, "reach")
    assert said.startswith("reached") == reaches, said


def test_service_answers_as_the_registered_model_does(cluster: Cluster):
    seen = _run(cluster, "client", "compare", TOKEN)

    assert seen["status"] == 200
    (result,) = seen["answer"]["results"]
    assert result["probabilities"] == pytest.approx(seen["expected"], abs=1e-6)
    assert seen["answer"]["model"]["name"] == "ast-demo"


def test_wrong_token_is_refused(cluster: Cluster):
    assert _run(cluster, "client", "status", "a-token-of-somebody-else") == 401


def test_deleted_pod_answers_what_it_took_and_another_one_follows(cluster: Cluster, measured):
    old = newest_pod(cluster, REPLICAS)
    with ThreadPoolExecutor(1) as pool:
        loop = pool.submit(_run, cluster, "client", "loop", TOKEN)
        try:
            cluster.kubectl("delete", "-n=ast", f"pod/{old}")
            wait_until(lambda: old not in _ready(cluster) and _ready(cluster).count("True") == 2, 600, "a new replica")
        finally:
            cluster.kubectl("exec", "-n=ast", "client", "--", "touch", "/tmp/stop")
        seen = loop.result()

    measured("R29", pods_deleted=1, clients=2, **{f"answers_{what}": count for what, count in seen.items()})
    assert seen["200"] > 20, seen
    assert "500" not in seen, seen  # no request was lost that a replica had taken
    assert _run(cluster, "client", "status", TOKEN) == 200


def test_delete_removes_every_pod_of_the_server(cluster: Cluster):
    cluster.kubectl("delete", "-k", "k8s/serve-local")
    pods = ("get", "pods", "-n=ast", "-l=app=ast-serve", "-o=name")
    wait_until(lambda: not cluster.kubectl(*pods).strip(), 300, "the end of the server's pods")


def _ready(cluster: Cluster) -> str:
    """Return a line for each replica with its name and whether it is ready."""
    line = '{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    return cluster.kubectl("get", "pods", "-n=ast", f"-l={REPLICAS}", f"-o=jsonpath={line}")


def _run(cluster: Cluster, pod: str, action: str, token: str = "") -> Any:
    """Run the client in a pod, and return what it printed."""
    command = ("kubectl", "exec", "-i", "-n=ast", pod, "--", "python", "-", action, token)
    return json.loads(cluster.run(*command, input_text=PROGRAM, limit_s=1800).strip().splitlines()[-1])
