"""The values of an installation: one place for them, which every overlay and every job follows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate_jobs
import pytest
import yaml
from manifests import K8S, load_all, load_kustomization, values

IMAGE = "registry.example/team/ast-pipeline:0.1.0"
TRACKING = "http://tracker.example:8000"
CLAIM = {"storageClassName": "fast", "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "7Gi"}}}


def test_jobs_are_those_that_make_manifests_writes() -> None:
    made = generate_jobs.generate(values())
    assert {path.name for path in (K8S / "jobs").iterdir()} == set(made), "run `make manifests`"
    for name, text in made.items():
        assert (K8S / "jobs" / name).read_text() == text, f"k8s/jobs/{name} is stale; run `make manifests`"


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of k8s/ with other values, as a user sets them, and with the jobs that follow."""
    folder = tmp_path_factory.mktemp("own") / "k8s"
    shutil.copytree(K8S, folder, ignore=shutil.ignore_patterns("image", "__pycache__"))
    path = folder / "values" / "values.yaml"
    (document,) = load_all(path.read_text())
    own = document["spec"]
    own["image"], own["tracking"] = IMAGE, TRACKING
    own["claims"] = dict.fromkeys(own["claims"], CLAIM)
    for number, group in enumerate(("head", "cpu", "gpu")):
        own[group]["shm"] = f"{number + 200}Gi"
        own[group]["resources"]["limits"]["memory"] = f"{number + 900}Gi"
    own["gpu"]["resources"]["limits"]["nvidia.com/gpu"] = "4"
    own["gpu"]["nodeSelector"] = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    own["gpu"]["nodesOfMany"], own["cpu"]["nodesOfMany"], own["cpu"]["nodes"] = 5, 6, 7
    own["serve"]["worker"]["resources"]["limits"]["memory"], own["serve"]["worker"]["most"] = "950Gi", 9
    own["jobs"] |= {"recipe": "esc50", "source": "/data/esc50", "run": "/work/esc50", "trainers": 3, "seeds": [7, 8]}
    path.write_text(yaml.safe_dump(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_jobs, "FOLDER", folder)
        generate_jobs.main()
    return folder


def find(node: Any, key: str) -> Iterator[Any]:
    """Yield all values of a key at any depth."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
        node = list(node.values())
    for item in node if isinstance(node, list) else []:
        yield from find(item, key)


@pytest.mark.parametrize("name", ["gpu", "multi-node", "queued", "kubeflow"])
def test_changed_values_reach_every_place_of_an_overlay(changed: Path, name: str) -> None:
    documents = load_kustomization(changed / "overlays" / name)
    images = {image for document in documents for image in find(document, "image")}
    assert images == {IMAGE, "postgres:15.18-bookworm"}
    claims = [document["spec"] for document in documents if document["kind"] == "PersistentVolumeClaim"]
    claims += [template["spec"] for own in find(documents, "volumeClaimTemplates") for template in own]
    assert claims == [CLAIM] * 4
    variables = [variable for own in find(documents, "env") for variable in own]
    addresses = {own["value"] for own in variables if own["name"] == "MLFLOW_TRACKING_URI"}
    assert addresses == ({TRACKING} if name != "queued" else set())


def test_changed_sizes_reach_each_group_of_the_cluster(changed: Path) -> None:
    (cluster,) = [d for d in load_kustomization(changed / "overlays" / "multi-node") if d["kind"] == "RayCluster"]
    head, cpu, gpu = cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]
    for number, group in enumerate((head, cpu, gpu)):
        pod = group["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["memory"] == f"{number + 900}Gi"
        assert f"{number + 200}Gi" in find(pod["volumes"], "sizeLimit")
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert gpu["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert (cpu["maxReplicas"], gpu["maxReplicas"]) == (6, 5)
    (single,) = [d for d in load_kustomization(changed / "overlays" / "gpu") if d["kind"] == "RayCluster"]
    assert [group["maxReplicas"] for group in single["spec"]["workerGroupSpecs"]] == [7, 1]


def test_changed_values_reach_every_job(changed: Path) -> None:
    for path in (changed / "jobs").iterdir():
        (job,) = load_all(path.read_text())
        assert set(find(job, "image")) == {IMAGE}, path.name
        assert "http://mlflow" not in path.read_text(), path.name
        if "entrypoint" in job["spec"] and path.stem != "demo":
            words = job["spec"]["entrypoint"]
            assert f"--recipe esc50 --run-dir /work/esc50 --tracking {TRACKING} " in words
            assert "/data/audioset" not in words
            assert "--workers 3 " in words or path.stem not in {"train", "run", "run-own-cluster", "run-queued"}


def test_job_that_no_longer_exists_is_removed(changed: Path, monkeypatch) -> None:
    (changed / "jobs" / "old.yaml").write_text("kind: RayJob\n")
    monkeypatch.setattr(generate_jobs, "FOLDER", changed)
    generate_jobs.main()
    assert not (changed / "jobs" / "old.yaml").exists()


def test_changed_values_reach_the_server(changed: Path) -> None:
    documents = load_kustomization(changed / "serve")
    assert set(find(documents, "image")) == {IMAGE}
    variables = [variable for own in find(documents, "env") for variable in own]
    assert {own["value"] for own in variables if own["name"] == "MLFLOW_TRACKING_URI"} == {TRACKING}
    (service,) = [document for document in documents if document["kind"] == "RayService"]
    assert "http://mlflow" not in service["spec"]["serveConfigV2"]  # the address is set once
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["maxReplicas"] == 9
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "950Gi"
