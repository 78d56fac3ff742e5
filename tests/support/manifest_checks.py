"""Checks of every manifest: Kubernetes' schema, the restricted pod profile, and facts of this repository."""

from __future__ import annotations

import copy
import functools
import re
import shlex
import tomllib
from decimal import Decimal
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
from custom_resources import check_custom
from manifests import ROOT, Manifest, pod_templates, ray_cluster_spec, ray_groups

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
CUSTOM = ("ray.io/", "kueue.x-k8s.io/", "monitoring.coreos.com/")
BINARY_UNITS = {"": 1, "m": Decimal("0.001"), "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
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

# It reads two megabytes of JSON for each manifest.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


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
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for name, template in pod_templates(add_autoscaler(manifest)):
        check_pod(name, template["spec"])
    if ray_cluster_spec(manifest) is not None:
        check_ray_cluster(manifest)


def add_autoscaler(manifest: Manifest) -> Manifest:
    """Return the manifest with the autoscaler's container that KubeRay adds to the head pod."""
    spec = ray_cluster_spec(manifest) or {}
    if not spec.get("enableInTreeAutoscaling"):
        return manifest
    started = copy.deepcopy(manifest)
    head = ray_cluster_spec(started)["headGroupSpec"]["template"]["spec"]
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
    assert spec["enableServiceLinks"] is False, f"{name} gets variables of every service, such as MLFLOW_PORT"
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
    assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"]), name
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
    if name.rpartition("/")[2] == "ast-pipeline":
        assert tag == version()


def check_ray_cluster(manifest: Manifest) -> None:
    """Check Ray's version, its token, and that every worker group can start."""
    spec = ray_cluster_spec(manifest) or {}
    assert spec["rayVersion"] == find_locked_version("ray") == find_locked_version("ray", "k8s/image/requirements.lock")
    assert spec["authOptions"] == {"mode": "token"}
    scales = spec["enableInTreeAutoscaling"]
    assert not scales or spec["autoscalerOptions"]["version"] == "v2"  # what Ray turns on by itself under KubeRay
    for group, template in ray_groups(manifest):
        check_ray_pod(f"{manifest['kind']} {group}", template["spec"])
        assert template["spec"].get("restartPolicy") == "Never", "a restarted pod is never reclaimed as idle"
    for group in spec["workerGroupSpecs"]:
        # `kubectl apply` would reset the autoscaler's number of replicas.
        assert ("replicas" in group) != scales, f"replicas of {group['groupName']}"
        assert group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]
        assert scales or group["replicas"] > 0, f"nothing ever starts {group['groupName']}"


def check_ray_pod(name: str, spec: Manifest) -> None:
    """Check what KubeRay and Ray need of a pod: no token by hand, and volumes for all that is written."""
    container = spec["containers"][0]
    by_hand = {variable["name"] for variable in container.get("env", [])} & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert not by_hand, f"{name}: KubeRay 1.5.1 sets {by_hand} a second time"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume.get("emptyDir") for volume in spec["volumes"]}
    assert mounts["/tmp/ray"] == "ray-logs", f"{name}: KubeRay shares this volume with the autoscaler"
    assert {"/dev/shm", "/tmp"} <= set(mounts), name
    assert volumes["memory"]["medium"] == "Memory", name
    disk = sum(quantity(volumes[mounts[path]]["sizeLimit"]) for path in ("/tmp", "/tmp/ray"))
    assert disk <= quantity(container["resources"]["limits"]["ephemeral-storage"]), f"{name} would be evicted"


def quantity(text: str) -> Decimal:
    """Return a quantity of Kubernetes as a number."""
    found = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)
    assert found, text
    return Decimal(found[1]) * BINARY_UNITS[found[2]]


def check_ray_job(job: Manifest, tracking: str) -> Any:
    """Check a RayJob and the flags of its command, and return the command's settings."""
    check(job)
    spec = job["spec"]
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["submitterConfig"]["backoffLimit"] >= 20, "each lost connection to the log costs one try, 2 by default"
    python, program, *flags = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert (ROOT / program).is_file()
    settings = _parse(program, tuple(flags))
    assert settings.run_dir.is_relative_to("/work")
    assert settings.address == "auto"
    assert settings.tracking == tracking
    return settings


@functools.cache
def _parse(program: str, flags: tuple[str, ...]) -> Any:
    """Return the settings of a command; tyro takes half a second for them."""
    return parse_settings(SETTINGS[program], "", list(flags))
