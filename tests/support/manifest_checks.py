"""Checks of every manifest: Kubernetes' schema, the restricted pod profile, and facts of this repository."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from typing import Any

import kubernetes_validate
from custom_resources import check_custom
from manifests import ROOT, Manifest, pod_templates

from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import (
    CalibrateSettings,
    CombineSettings,
    EvaluateSettings,
    PrepareSettings,
    RegisterSettings,
    ReportSettings,
    RunSettings,
    TrainSettings,
)
from tune.ensemble import EnsembleSettings
from tune.search import SearchSettings

KUBERNETES = "1.32"
CUSTOM = ("ray.io/", "kueue.x-k8s.io/")
SETTINGS: dict[str, type[Any]] = {
    "pipeline/prepare.py": PrepareSettings,
    "pipeline/train.py": TrainSettings,
    "pipeline/combine.py": CombineSettings,
    "pipeline/evaluate.py": EvaluateSettings,
    "pipeline/calibrate.py": CalibrateSettings,
    "pipeline/register.py": RegisterSettings,
    "pipeline/report.py": ReportSettings,
    "pipeline/run.py": RunSettings,
    "tune/search.py": SearchSettings,
    "tune/ensemble.py": EnsembleSettings,
}


def version() -> str:
    """Return the project's version."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def find_locked_version(package: str, lock: str = "requirements.lock") -> str:
    """Return a package's version; fail if it is not in the lock."""
    found = re.search(rf"^{package}==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    assert found, f"{package} is not in {lock}"
    return found[1]


def check(manifest: Manifest) -> None:
    """Check one manifest and the pods that it makes."""
    if manifest["apiVersion"].startswith(CUSTOM):
        check_custom(manifest)
    elif not manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for name, template in pod_templates(add_autoscaler(manifest)):
        check_pod(name, template["spec"])
    if manifest["kind"] == "RayCluster":
        check_ray_cluster(manifest)


def add_autoscaler(manifest: Manifest) -> Manifest:
    """Return the manifest with the autoscaler's container that KubeRay adds to the head pod."""
    spec = manifest.get("spec", {})
    if manifest["kind"] != "RayCluster" or not spec.get("enableInTreeAutoscaling"):
        return manifest
    started = copy.deepcopy(manifest)
    head = started["spec"]["headGroupSpec"]["template"]["spec"]
    taken = ("resources", "securityContext", "volumeMounts", "env")
    options = {key: value for key, value in spec.get("autoscalerOptions", {}).items() if key in taken}
    head["containers"].append({"name": "autoscaler", "image": head["containers"][0]["image"], **options})
    return started


def check_pod(name: str, spec: Manifest) -> None:
    """Check that a namespace with the restricted profile admits a pod, and that it has requests and no plain secret."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    assert spec["securityContext"]["runAsNonRoot"] is True, name
    assert spec["securityContext"]["runAsUser"] > 0, name
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert spec["automountServiceAccountToken"] is False, name
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
    assert all("hostPath" not in volume for volume in spec.get("volumes", [])), name
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        check_container(f"{name} {container['name']}", container)
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= volumes or "StatefulSet" in name, name  # its volumes come from claim templates


def check_container(name: str, container: Manifest) -> None:
    """Check one container of a pod."""
    assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
    assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
    assert "memory" in container["resources"]["limits"], name
    check_image(container["image"])
    words = " ".join(container.get("command", []) + container.get("args", []))
    for variable in container.get("env", []):
        if re.search(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY", variable["name"]):
            assert "secretKeyRef" in variable["valueFrom"], (name, variable["name"])
            assert f"$({variable['name']})" not in words, f"{name}: {variable['name']} would be seen in `ps`"


def check_image(image: str) -> None:
    """Check that an image has a fixed version; the project's own image must have the project's version."""
    name, _, tag = image.rpartition(":")
    assert name, f"{image} has no tag"
    assert tag != "latest"
    if name == "ast-pipeline":
        assert tag == version()


def check_ray_cluster(manifest: Manifest) -> None:
    """Check Ray's version, its token, and that every worker group can start."""
    spec = manifest["spec"]
    assert spec["rayVersion"] == find_locked_version("ray") == find_locked_version("ray", "k8s/image/requirements.lock")
    assert spec["authOptions"] == {"mode": "token"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for container in (group["template"]["spec"]["containers"][0] for group in groups):
        check_token(container, manifest["metadata"]["name"])
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert spec["enableInTreeAutoscaling"] or group["replicas"] > 0, f"nothing ever starts {group['groupName']}"
        memory = next(v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "memory")
        assert memory["medium"] == "Memory"


def check_token(container: Manifest, cluster: str) -> None:
    """Check that Ray's token comes from the secret that KubeRay names after the cluster."""
    env = {variable["name"]: variable for variable in container["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}


def check_ray_job(job: Manifest, tracking: str) -> Any:
    """Check a RayJob and the flags of its command, and return the command's settings."""
    check(job)
    spec = job["spec"]
    assert spec["activeDeadlineSeconds"] > 0
    check_token(spec["submitterPodTemplate"]["spec"]["containers"][0], spec["clusterSelector"]["ray.io/cluster"])
    python, program, *flags = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert (ROOT / program).is_file()
    settings = parse_settings(SETTINGS[program], "", flags)
    assert settings.run_dir.is_relative_to("/work")
    assert settings.address == "auto"
    assert settings.tracking == tracking
    return settings
