"""Kubernetes manifests as a cluster gets them: jobs from their files, overlays from kustomize."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
JOBS = sorted(path.name for path in (K8S / "jobs").iterdir() if path.name != "upload.yaml")
"""Files of the RayJobs."""
Manifest = dict[str, Any]


def load_all(text: str) -> Iterator[Manifest]:
    """Yield the documents of a text, ten times as fast as `yaml.safe_load_all`, which is Python."""
    yield from yaml.load_all(text, yaml.CSafeLoader)


def jobs() -> list[Manifest]:
    """Read the RayJobs."""
    return [document for name in JOBS for document in load_all((K8S / "jobs" / name).read_text())]


@functools.cache
def render(folder: Path) -> str:
    """Render a folder with `kubectl kustomize` of the virtual environment."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load_kustomization(folder: Path) -> list[Manifest]:
    """Return the manifests of a folder with a kustomization."""
    return list(load_all(render(folder)))


def overlay(name: str) -> list[Manifest]:
    """Return an overlay's manifests."""
    return load_kustomization(K8S / "overlays" / name)


def server() -> list[Manifest]:
    """Return the manifests of the server."""
    return load_kustomization(K8S / "serve")


def upload_job() -> Manifest:
    """Read the job that fills the claim of the recordings."""
    (job,) = load_all((K8S / "jobs" / "upload.yaml").read_text())
    return job


def values() -> dict[str, Any]:
    """Read the values of the installation."""
    (found,) = load_all((K8S / "values" / "values.yaml").read_text())
    own: dict[str, Any] = found["spec"]
    return own


@functools.cache
def _render_with(base: str, components: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        names = [f"overlays/{base}", *(f"components/{component}" for component in components)]
        near = [os.path.relpath(K8S / name, folder) for name in names]
        words = {"resources": near[:1], "components": near[1:]}
        kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kind | words))
        return render(Path(folder))


def with_components(base: str, *components: str) -> list[Manifest]:
    """Return an overlay with components, combined as a user does in a kustomization."""
    return list(load_all(_render_with(base, components)))


def pod_templates(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yield name and template of every pod that a manifest makes, including those in custom resources."""
    name, spec = f"{manifest['kind']}/{manifest['metadata'].get('name', 'job')}", manifest.get("spec", {})
    if manifest["kind"] in {"Deployment", "StatefulSet", "Job"}:
        yield name, spec["template"]
    if manifest["kind"] == "CronJob":
        yield name, spec["jobTemplate"]["spec"]["template"]
    if manifest["kind"] == "RayJob":
        yield f"{name} submitter", spec["submitterPodTemplate"]
    for group, template in ray_groups(manifest):
        yield f"{name} {group}", template


def ray_cluster_spec(manifest: Manifest) -> Manifest | None:
    """Return the spec of the Ray cluster that a manifest makes, if it makes one."""
    spec: Manifest = manifest.get("spec", {})
    return spec if manifest["kind"] == "RayCluster" else spec.get("rayClusterSpec", spec.get("rayClusterConfig"))


def ray_groups(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yield the name and the pod template of the head and of each worker group."""
    spec = ray_cluster_spec(manifest)
    if spec is not None:
        yield "head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield group["groupName"], group["template"]


def tracker_container(name: str) -> Manifest:
    """Return the container of an overlay's MLflow server."""
    (deployment,) = [d for d in overlay(name) if d["kind"] == "Deployment" and d["metadata"]["name"] == "mlflow"]
    container: Manifest = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def tracker_flags(name: str) -> dict[str, str]:
    """Return the flags of an overlay's MLflow server by name."""
    return dict(flag.split("=", 1) for flag in tracker_container(name)["args"])
