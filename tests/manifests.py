"""Kubernetes manifests as a cluster would get them: jobs from their files, overlays from kustomize."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
JOBS = sorted(path.name for path in (K8S / "jobs").iterdir())
Manifest = dict[str, Any]


def jobs() -> list[Manifest]:
    """The RayJobs."""
    return [document for name in JOBS for document in yaml.safe_load_all((K8S / "jobs" / name).read_text())]


def overlay(name: str) -> list[Manifest]:
    """An overlay's manifests. Skips where there is no kubectl, whose built-in kustomize renders them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders kustomize overlays, is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


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
