"""Kubernetes manifests as a cluster gets them: jobs from their files, overlays from kustomize."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
JOBS = sorted(path.name for path in (K8S / "jobs").iterdir())
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


def with_component(folder: Path, base: str, component: str) -> list[Manifest]:
    """Return an overlay with one component, combined as a user does in a kustomization in `folder`."""
    near = [os.path.relpath(K8S / name, folder) for name in (f"overlays/{base}", f"components/{component}")]
    words = {"resources": near[:1], "components": near[1:]}
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kind | words))
    return load_kustomization(folder)


def pod_templates(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yield name and template of every pod that a manifest makes, including those in custom resources."""
    name, spec = f"{manifest['kind']}/{manifest['metadata'].get('name', 'job')}", manifest.get("spec", {})
    if manifest["kind"] in {"Deployment", "StatefulSet"}:
        yield name, spec["template"]
    if manifest["kind"] == "RayJob":
        yield f"{name} submitter", spec["submitterPodTemplate"]
    if manifest["kind"] == "RayCluster":
        yield f"{name} head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]


def tracker_container(name: str) -> Manifest:
    """Return the container of an overlay's MLflow server."""
    (deployment,) = [d for d in overlay(name) if d["kind"] == "Deployment" and d["metadata"]["name"] == "mlflow"]
    container: Manifest = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def tracker_flags(name: str) -> dict[str, str]:
    """Return the flags of an overlay's MLflow server by name."""
    return dict(flag.split("=", 1) for flag in tracker_container(name)["args"])
