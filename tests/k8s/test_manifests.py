"""Every manifest against Kubernetes' schemas and against this repository: no flag, path or version is stale."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from manifests import JOBS, K8S, OVERLAYS, ROOT, Manifest, jobs, overlay, pod_templates

from pipeline.settings import (
    CombineSettings,
    EvaluateSettings,
    PrepareSettings,
    RegisterSettings,
    RunSettings,
    TrainSettings,
    parse,
)
from tune.ensemble import EnsembleSettings
from tune.search import SearchSettings

KUBERNETES = "1.32"
PROGRAMS = {
    "pipeline/prepare.py": PrepareSettings,
    "pipeline/train.py": TrainSettings,
    "pipeline/combine.py": CombineSettings,
    "pipeline/evaluate.py": EvaluateSettings,
    "pipeline/register.py": RegisterSettings,
    "pipeline/run.py": RunSettings,
    "tune/search.py": SearchSettings,
    "tune/ensemble.py": EnsembleSettings,
}
CLUSTER_KEYS = {
    "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs", "suspend",
}  # fmt: skip
GROUP_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"}
JOB_KEYS = {
    "clusterSelector", "entrypoint", "entrypointNumCpus", "activeDeadlineSeconds", "backoffLimit",
    "ttlSecondsAfterFinished", "submitterPodTemplate", "runtimeEnvYAML", "shutdownAfterJobFinishes",
}  # fmt: skip
"""Of KubeRay's v1 API, those in use; pods inside them are held to Kubernetes' own schema."""
CUSTOM = {"ray.io/v1", "kueue.x-k8s.io/v1beta1", "monitoring.coreos.com/v1"}


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def locked(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found
    return found[1]


def check_pods(manifest: Manifest) -> None:
    for name, template in pod_templates(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
            check_image(container["image"])
            for variable in container.get("env", []):
                secret = re.search(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"], (name, variable["name"])


def check_image(image: str) -> None:
    name, _, tag = image.rpartition(":")
    assert name, f"{image} has no tag"
    assert tag != "latest"
    if name == "ast-pipeline":
        assert tag == version()


def check_ray(manifest: Manifest) -> None:
    spec = manifest["spec"]
    assert set(spec) <= CLUSTER_KEYS
    assert spec["rayVersion"] == locked("ray")
    for group in [*spec["workerGroupSpecs"], spec["headGroupSpec"]]:
        assert set(group) <= GROUP_KEYS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid_and_whole(name: str) -> None:
    documents = overlay(name)
    for manifest in documents:
        if manifest["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        check_pods(manifest)
        if manifest["kind"] == "RayCluster":
            check_ray(manifest)
    check_references(documents)


def check_references(documents: list[Manifest]) -> None:
    """What a manifest names is there: claims, priorities, accounts, services, and the pods that selectors look for."""
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    labels = [t["metadata"]["labels"] for d in documents for _, t in pod_templates(d)]
    labels = [own | {"ray.io/node-type": kind} for own in labels for kind in ("head", "worker")]
    for manifest in documents:
        for pod, template in pod_templates(manifest):
            spec = template["spec"]
            assert ("PriorityClass", spec["priorityClassName"]) in names, pod
            assert ("ServiceAccount", spec["serviceAccountName"]) in names, pod
            for volume in spec.get("volumes", []):
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                assert claim is None or ("PersistentVolumeClaim", claim) in names, (pod, claim)
            hosts = re.findall(r"(?:http://|@)([a-z-]+):\d+", yaml.safe_dump(template))
            assert all(("Service", host) in names for host in hosts), (pod, hosts)
            if manifest["kind"] in {"Deployment", "StatefulSet"}:
                assert {"readinessProbe", "livenessProbe"} <= set(spec["containers"][0]), pod
        if manifest["kind"] in {"PodDisruptionBudget", "Service"}:
            selector = manifest["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= own.items() for own in labels), manifest["metadata"]["name"]


def test_overlays_differ_where_they_should() -> None:
    def groups(name: str) -> dict[str, tuple[int, str]]:
        cluster = next(d for d in overlay(name) if d["kind"] == "RayCluster")
        limits = {
            g["groupName"]: g["template"]["spec"]["containers"][0]["resources"]["limits"]
            for g in cluster["spec"]["workerGroupSpecs"]
        }
        return {
            g["groupName"]: (g["maxReplicas"], limits[g["groupName"]].get("nvidia.com/gpu", "0"))
            for g in cluster["spec"]["workerGroupSpecs"]
        }

    assert groups("local") == {"cpu": (1, "0")}
    assert groups("gpu") == {"cpu": (8, "0"), "gpu": (1, "8")}
    assert groups("multi-node") == {"cpu": (32, "0"), "gpu": (8, "8")}
    queued = next(d for d in overlay("queued") if d["kind"] == "RayCluster")
    queues = [d["metadata"]["name"] for d in overlay("queued") if d["kind"] == "LocalQueue"]
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] in queues


@pytest.mark.parametrize("job", jobs(), ids=JOBS)
def test_a_jobs_command_is_one_that_the_program_takes(job: Manifest) -> None:
    assert set(job["spec"]) <= JOB_KEYS
    check_pods(job)
    python, program, *flags = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / program).is_file()
    settings = parse(PROGRAMS[program], "", flags)
    assert settings.run_dir.is_relative_to("/work")
    assert settings.address == "auto"
    assert settings.tracking == "http://mlflow:5000"
    assert job["spec"]["activeDeadlineSeconds"] > 0


def test_each_program_of_a_stage_has_a_job() -> None:
    assert {shlex.split(job["spec"]["entrypoint"])[1] for job in jobs()} == set(PROGRAMS)


def test_the_image_takes_what_there_is_and_no_more() -> None:
    lines = (K8S / "image" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in _sources(line)]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for name in copied} == {word for word in ignored if word.startswith("!")}
    assert lines[-2:] == ["USER 1000", 'CMD ["python", "pipeline/run.py", "--help"]']


def _sources(line: str) -> list[str]:
    words = [word for word in line.split()[1:] if not word.startswith("--")]
    return words[:-1]


def test_jobs_select_a_cluster_that_there_is() -> None:
    cluster = yaml.safe_load((K8S / "base" / "raycluster.yaml").read_text())
    for job in jobs():
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert Path(K8S / "base" / "kustomization.yaml").is_file()
