"""Kubernetes manifests as a cluster would get them: jobs from their files, overlays from kustomize."""

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


def jobs() -> list[Manifest]:
    """The RayJobs."""
    return [document for name in JOBS for document in yaml.safe_load_all((K8S / "jobs" / name).read_text())]


@functools.cache
def rendered(folder: Path) -> str:
    """A folder as kubectl's kustomize renders it; kubectl is of the virtual environment."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kustomized(folder: Path) -> list[Manifest]:
    """The manifests of a folder with a kustomization."""
    return list(yaml.safe_load_all(rendered(folder)))


def overlay(name: str) -> list[Manifest]:
    """An overlay's manifests."""
    return kustomized(K8S / "overlays" / name)


def with_component(folder: Path, base: str, component: str) -> list[Manifest]:
    """An overlay with one of the components, as a user's own kustomization in `folder` would have them."""
    near = [os.path.relpath(K8S / name, folder) for name in (f"overlays/{base}", f"components/{component}")]
    words = {"resources": near[:1], "components": near[1:]}
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kind | words))
    return kustomized(folder)


def pod_templates(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Name and template of every pod that a manifest makes, in custom resources too."""
    name, spec = f"{manifest['kind']}/{manifest['metadata'].get('name', 'job')}", manifest.get("spec", {})
    if manifest["kind"] in {"Deployment", "StatefulSet"}:
        yield name, spec["template"]
    if manifest["kind"] == "RayJob":
        yield f"{name} submitter", spec["submitterPodTemplate"]
    if manifest["kind"] == "RayCluster":
        yield f"{name} head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]
