"""The product on a real Kubernetes, step by step, with the commands of docs/guides/kubernetes.md.

The tests run in this order and build on each other: installation, recordings, jobs, and what a cluster does to them.
Those of the server, in test_server_on_kubernetes.py, follow: they serve the model that the demo registered.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from generate_jobs import Job, load_values, write_job
from one_node import ROOT, Cluster
from pods import HEAD, WORKER, newest_pod, restricted_pod, wait_until

pytestmark = [pytest.mark.timeout(3600), pytest.mark.ray, pytest.mark.server]
CLASSES = {"hum": 200.0, "whistle": 2000.0}
PROBE = """
import time, urllib.request
for _ in range(10):  # a network plugin needs a moment before it knows a new pod
    try:
        print(urllib.request.urlopen("http://mlflow.ast:5000/health", timeout=5).read().decode())
        break
    except OSError as error:
        print(error)
        time.sleep(2)
"""


def test_overlay_local_becomes_ready_in_a_restricted_namespace(cluster: Cluster):
    cluster.shell("kubectl apply -f k8s/base/namespace.yaml")
    cluster.shell(
        "kubectl create secret generic mlflow-database -n ast --from-literal=password=$(openssl rand -hex 24)"
    )
    cluster.shell(
        "kubectl create secret generic object-store -n ast --from-literal=access-key=ast "
        "--from-literal=secret-key=$(openssl rand -hex 24)"
    )
    cluster.kubectl("apply", "-k", "k8s/overlays/local")

    cluster.kubectl("rollout", "status", "-n=ast", "deployment/mlflow", "--timeout=900s", limit_s=1000)
    cluster.kubectl("wait", "-n=ast", "raycluster/ast", "--for=jsonpath={.status.state}=ready", "--timeout=600s")
    level = cluster.kubectl("get", "namespace", "ast", "-o=jsonpath={.metadata.labels}")
    assert json.loads(level)["pod-security.kubernetes.io/enforce"] == "restricted"


def test_upload_job_fills_the_read_only_volume(cluster: Cluster, tmp_path: Path):
    _save_clips(tmp_path)

    cluster.kubectl("create", "-n=ast", "-f=k8s/jobs/upload.yaml")
    cluster.shell("kubectl wait -n ast job/upload --for=jsonpath='{.status.ready}'=1 --timeout=10m")
    cluster.kubectl("exec", "-n=ast", "job/upload", "--", "mkdir", "-p", "/data/clips")
    cluster.shell(f"tar -C {tmp_path} -cf - . | kubectl exec -i -n ast job/upload -- tar -C /data/clips -xf -")
    cluster.kubectl("delete", "-n=ast", "job/upload")

    listed = cluster.kubectl("exec", "-n=ast", newest_pod(cluster, HEAD), "--", "find", "/data/clips", "-name", "*.wav")
    assert len(listed.split()) == len(list(tmp_path.rglob("*.wav")))


def test_demo_job_completes_and_mlflow_shows_the_registered_ensemble(cluster: Cluster):
    job = _create(cluster, Path("k8s/jobs/demo.yaml"))

    _wait_for_end(cluster, job, "Complete", limit_s=1800)
    assert _is_registered(cluster, "ast-demo")
    assert "MLflow" in _read_mlflow(cluster, "/")


@pytest.mark.parametrize(("label", "reaches"), [("app=ast-ray", True), ("app=ast-submitter", False), ("team=x", False)])
def test_only_clients_of_mlflow_reach_it(cluster: Cluster, label: str, reaches: bool):
    name = f"probe-{label.replace('=', '-')}"
    cluster.run("kubectl", "apply", "-f", "-", input_text=yaml.safe_dump(_probe_pod(name, label)))

    cluster.kubectl("wait", "-n=ast", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s")
    said = cluster.kubectl("logs", "-n=ast", name)
    cluster.kubectl("delete", "-n=ast", f"pod/{name}")
    assert ("OK" in said) == reaches, said


def test_training_continues_after_its_worker_was_deleted(cluster: Cluster, tmp_path: Path):
    job = _create(cluster, _own_job(tmp_path, "long", "--ensemble.seeds 0 --optim.epochs 60"))
    _wait_for_line(cluster, job, "train seed 0")
    _wait_for_checkpoint(cluster, "/work/long")

    old = newest_pod(cluster, WORKER)
    cluster.kubectl("delete", "-n=ast", f"pod/{old}")

    _wait_for_end(cluster, job, "Complete", limit_s=1800)
    assert newest_pod(cluster, WORKER) != old
    assert "Resumed at step" in _log(cluster, job)


def test_training_that_lost_its_head_resumes_when_its_job_is_created_again(cluster: Cluster, tmp_path: Path):
    file = _own_job(tmp_path, "head", "--ensemble.seeds 0 --optim.epochs 60")
    job = _create(cluster, file)
    _wait_for_checkpoint(cluster, "/work/head")

    cluster.kubectl("delete", "-n=ast", f"pod/{newest_pod(cluster, HEAD)}")
    _wait_for_end(cluster, job, "Failed", limit_s=900)
    cluster.kubectl("wait", "-n=ast", "raycluster/ast", "--for=jsonpath={.status.state}=ready", "--timeout=600s")
    again = _create(cluster, file)

    _wait_for_end(cluster, again, "Complete", limit_s=1800)
    assert "Resumed at step" in _log(cluster, again)


def test_drain_of_the_node_waits_for_the_head_and_the_training_continues_after_it(cluster: Cluster, tmp_path: Path):
    job = _create(cluster, _own_job(tmp_path, "drained", "--ensemble.seeds 0 --optim.epochs 60"))
    _wait_for_checkpoint(cluster, "/work/drained")
    node = cluster.kubectl("get", "pod", "-n=ast", newest_pod(cluster, WORKER), "-o=jsonpath={.spec.nodeName}")

    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s")
    cluster.kubectl("drain", node, *flags, check=False, limit_s=400)
    left = cluster.kubectl("get", "pods", "-n=ast", "--field-selector=status.phase=Running", "-o=name")
    assert "ast-head" in left
    assert "worker" not in left
    cluster.kubectl("uncordon", node)

    _wait_for_end(cluster, job, "Complete", limit_s=1800)


def test_kubeflow_steps_submit_ray_jobs_from_their_own_namespace(cluster: Cluster, tmp_path: Path):
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    kustomization = {
        "resources": [_relative(ROOT / "k8s/overlays/local", overlay)],
        "components": [_relative(ROOT / "k8s/components/kubeflow", overlay)],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    cluster.kubectl("create", "namespace", "kubeflow")
    cluster.kubectl("create", "serviceaccount", "pipeline-runner", "-n=kubeflow")
    cluster.kubectl("apply", "-k", str(overlay))
    cluster.run("kubectl", "apply", "-f", "-", input_text=yaml.safe_dump(_steps_pod()))
    cluster.kubectl("wait", "-n=kubeflow", "pod/steps", "--for=condition=Ready", "--timeout=300s")
    cluster.shell("tar -cf - k8s | kubectl exec -i -n kubeflow steps -- tar -C /tmp -xf -")

    parameters = {
        "recipe": "own", "data_source": "/data/clips", "run_dir": "/work/kubeflow", "seeds": [0], "workers": 2,
        "tracking": "http://mlflow.ast:5000", "ray_cluster": "ast", "model_name": "kubeflow",
        "changes": {"gpus": "no", "optim.epochs": 2, "optim.average_first_epoch": 1},
    }  # fmt: skip
    line = f"cd /tmp && python k8s/kubeflow/pipelines.py --here main_job '{json.dumps(parameters)}'"
    said = cluster.kubectl("exec", "-n=kubeflow", "steps", "--", "sh", "-c", line, limit_s=1800)

    assert "RayJob ast/pipeline-register-" in said
    assert _is_registered(cluster, "kubeflow")


def test_job_with_its_own_cluster_makes_and_deletes_it(cluster: Cluster, tmp_path: Path):
    cluster.kubectl("delete", "-n=ast", "raycluster/ast")  # one node has no room for two

    job = _create(cluster, _own_job(tmp_path, "own", "--ensemble.seeds 0 --optim.epochs 16", cluster="own"))

    _wait_for_end(cluster, job, "Complete", limit_s=1800)
    wait_until(
        lambda: "own" not in cluster.kubectl("get", "raycluster", "-n=ast", "-o=name"), 900, "the cluster is deleted"
    )


def test_job_behind_kueue_is_admitted_and_completes(cluster: Cluster, tmp_path: Path):
    if "kueue" not in cluster.kubectl("get", "crd", "-o=name"):
        pytest.skip("this cluster has no Kueue")
    cluster.kubectl("apply", "-f=k8s/components/kueue/queue.yaml")

    job = _create(cluster, _own_job(tmp_path, "queued", "--ensemble.seeds 0 --optim.epochs 16", cluster="queued"))

    admitted = '-o=jsonpath={.items[*].status.conditions[?(@.type=="Admitted")].status}'
    wait_until(lambda: "True" in cluster.kubectl("get", "workloads", "-n=ast", admitted), 120, "the admission")
    _wait_for_end(cluster, job, "Complete", limit_s=1800)


def _save_clips(folder: Path) -> None:
    """Save noisy tones, a folder for each class."""
    noise = np.random.default_rng(0)
    times_s = np.arange(16_000) / 16_000
    for name, frequency_hz in CLASSES.items():
        (folder / name).mkdir()
        for number in range(16):
            samples = 0.3 * np.sin(2 * np.pi * frequency_hz * times_s) + 0.02 * noise.standard_normal(len(times_s))
            soundfile.write(folder / name / f"{number}.wav", samples, 16_000)


def _own_job(folder: Path, name: str, flags: str, cluster: str = "shared") -> Path:
    """Write a RayJob of the demo's recipe, as `make manifests` would for the overlay `local`."""
    values = load_values()
    values["jobs"].update(ownCluster="local", ownWorkers={"cpu": 1})
    job = Job(
        "A test.", "pipeline/run.py", f"--workers 2 --gpus no {flags}", 2, trains=True, recipe="demo", cluster=cluster
    )
    text = write_job(name, job, values).replace("--run-dir /work/demo", f"--run-dir /work/{name}")
    file = folder / f"{name}.yaml"
    file.write_text(text.replace("ttlSecondsAfterFinished: 600", "ttlSecondsAfterFinished: 10"), encoding="utf-8")
    return file


def _create(cluster: Cluster, file: Path) -> str:
    """Create a RayJob, and return its name."""
    return cluster.kubectl("create", "-n=ast", f"-f={file}", "-o=jsonpath={.metadata.name}")


def _status(cluster: Cluster, job: str) -> str:
    return cluster.kubectl("get", "rayjob", "-n=ast", job, "-o=jsonpath={.status.jobDeploymentStatus}")


def _wait_for_end(cluster: Cluster, job: str, wanted: str, limit_s: float) -> None:
    wait_until(lambda: _status(cluster, job) in {"Complete", "Failed"}, limit_s, f"the end of {job}")
    assert _status(cluster, job) == wanted, _log(cluster, job)[-3000:]


def _log(cluster: Cluster, job: str) -> str:
    return cluster.kubectl("logs", "-n=ast", f"-l=job-name={job}", "--tail=-1", check=False)


def _wait_for_line(cluster: Cluster, job: str, text: str) -> None:
    wait_until(lambda: text in _log(cluster, job), 600, f"{text} in the log of {job}")


def _wait_for_checkpoint(cluster: Cluster, run: str) -> None:
    find = ("find", run, "-path", "*checkpoint*", "-name", "*.safetensors")
    head = lambda: cluster.kubectl("exec", "-n=ast", newest_pod(cluster, HEAD), "--", *find, check=False)  # noqa: E731
    wait_until(lambda: bool(head().strip()), 900, f"a checkpoint in {run}")


def _read_mlflow(cluster: Cluster, path: str) -> str:
    """Read a page through the port that the documentation forwards."""
    return cluster.shell(
        "kubectl port-forward -n ast svc/mlflow 5000 >/dev/null 2>&1 & trap 'kill %1' EXIT; "
        f"curl -s --retry 20 --retry-delay 1 --retry-connrefused 'http://127.0.0.1:5000{path}'"
    )


def _is_registered(cluster: Cluster, name: str) -> bool:
    """Return whether MLflow has a model; its answer about a missing one names it, too."""
    answer = json.loads(_read_mlflow(cluster, f"/api/2.0/mlflow/registered-models/get?name={name}"))
    return bool(answer.get("registered_model", {}).get("latest_versions"))


def _probe_pod(name: str, label: str) -> dict[str, object]:
    key, _, value = label.partition("=")
    return restricted_pod(name, "ast", {key: value}, ["python", "-c", PROBE])


def _steps_pod() -> dict[str, object]:
    pod = restricted_pod("steps", "kubeflow", {}, ["sleep", "infinity"])
    pod["spec"]["serviceAccountName"] = "pipeline-runner"
    pod["spec"]["automountServiceAccountToken"] = True
    return pod


def _relative(target: Path, folder: Path) -> str:
    return os.path.relpath(target, folder)
