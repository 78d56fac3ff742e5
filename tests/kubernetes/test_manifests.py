"""Checks of every manifest with Kubernetes' schemas, and with this repository's flags, paths and versions."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable

import jsonschema
import pytest
import yaml
from manifest_checks import SETTINGS, add_autoscaler, check, check_ray_job
from manifests import JOBS, OVERLAYS, Manifest, jobs, overlay, pod_templates, values
from network_policies import Pod, allows

TRACKING = values()["tracking"]
each_overlay = pytest.mark.parametrize("name", OVERLAYS)


def one(documents: list[Manifest], kind: str, name: str = "") -> Manifest:
    (found,) = [d for d in documents if d["kind"] == kind and name in {"", d["metadata"]["name"]}]
    return found


@each_overlay
def test_overlay_is_valid_and_complete(name: str) -> None:
    documents = overlay(name)
    for manifest in documents:
        check(manifest)
    check_references(documents)


def check_references(documents: list[Manifest]) -> None:
    """Check that named claims, priorities, accounts and services exist, and the pods that selectors look for."""
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    labels = [t["metadata"]["labels"] for d in documents for _, t in pod_templates(d)]
    labels = [
        own | {"ray.io/node-type": kind, "ray.io/cluster": "ast"} for own in labels for kind in ("head", "worker")
    ]
    for manifest in documents:
        for pod, template in pod_templates(manifest):
            spec = template["spec"]
            assert ("PriorityClass", spec["priorityClassName"]) in names, pod
            assert ("ServiceAccount", spec["serviceAccountName"]) in names, pod
            for volume in spec.get("volumes", []):
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                assert claim is None or ("PersistentVolumeClaim", claim) in names, (pod, claim)
            hosts = re.findall(r"(?:http://|@)([a-z-]+)(?:\.ast)?:\d+", yaml.safe_dump(template))
            assert all(("Service", host) in names for host in hosts), (pod, hosts)
            if manifest["kind"] in {"Deployment", "StatefulSet"}:
                assert {"readinessProbe", "livenessProbe"} <= set(spec["containers"][0]), pod
        if manifest["kind"] in {"PodDisruptionBudget", "Service"}:
            selector = manifest["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= own.items() for own in labels), manifest["metadata"]["name"]


@each_overlay
def test_overlay_has_restricted_pods_budgets_priorities_and_accounts(name: str) -> None:
    documents = overlay(name)
    assert one(documents, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert one(documents, "Deployment", "mlflow")["spec"]["strategy"] == {"type": "Recreate"}
    budgets = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "PodDisruptionBudget"}
    assert set(budgets) == {"mlflow", "postgres"} | ({"ray-head"} if name != "queued" else set())
    # A RayCluster has no scale subresource: only a number of pods that must run works, and only for one cluster.
    assert budgets.get("ray-head", {"minAvailable": 1})["minAvailable"] == 1
    classes = {d["metadata"]["name"]: d["value"] for d in documents if d["kind"] == "PriorityClass"}
    for cluster in (d["spec"] for d in documents if d["kind"] == "RayCluster"):
        head, *workers = [
            group["template"]["spec"]["priorityClassName"]
            for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        ]
        assert all(
            classes[head] > classes[own] for own in workers
        )  # a preempted training resumes, a lost head costs all
    assert {d["metadata"]["namespace"] for d in documents if d["kind"] in {"Role", "NetworkPolicy", "Service"}} == {
        "ast"
    }
    own = [d for d in documents if d["kind"] == "ServiceAccount"]
    assert all(account["automountServiceAccountToken"] is False for account in own)


def test_only_the_autoscaler_has_access_to_kubernetes() -> None:
    """Check the account that KubeRay binds to a Role: only the head pod uses it, only the autoscaler has its token."""
    documents = overlay("gpu")
    accounts = {pod: template["spec"]["serviceAccountName"] for d in documents for pod, template in pod_templates(d)}
    assert [pod for pod, account in accounts.items() if account == "ast-head"] == ["RayCluster/ast head"]
    head = add_autoscaler(one(documents, "RayCluster"))["spec"]["headGroupSpec"]["template"]["spec"]
    holders = {
        container["name"]: mount["mountPath"]
        for container in head["containers"]
        for mount in container["volumeMounts"] if mount["name"] == "kubernetes-access"
    }  # fmt: skip
    assert holders == {"autoscaler": "/var/run/secrets/kubernetes.io/serviceaccount"}
    volume = next(volume for volume in head["volumes"] if volume["name"] == "kubernetes-access")
    files = yaml.safe_dump(volume["projected"]["sources"])
    assert all(
        f"path: {file}\n" in files for file in ("token", "ca.crt", "namespace")
    )  # the files that Ray's autoscaler opens


def test_network_policies_allow_only_the_needed_connections() -> None:
    ray = {kind: Pod({"app": "ast-ray", "ray.io/node-type": kind}) for kind in ("head", "worker")}
    mlflow, postgres, store, submitter, stray = (
        Pod({"app": app}) for app in ("mlflow", "postgres", "object-store", "ast-submitter", "stray")
    )
    operator, pipelines, outside = (Pod({}, space) for space in ("kuberay-operator", "kubeflow", "somewhere"))
    names = Pod({"k8s-app": "kube-dns"}, "kube-system")
    local, kubeflow = overlay("local"), overlay("kubeflow")
    for source, target, port, may in (
        (ray["worker"], ray["head"], 6379, True),
        (ray["head"], ray["worker"], 31_234, True),
        (ray["worker"], mlflow, 5000, True),
        (ray["worker"], postgres, 5432, False),
        (ray["head"], outside, 6443, True),  # the autoscaler's Kubernetes
        (ray["worker"], outside, 6443, False),
        (ray["worker"], outside, 443, True),
        (ray["worker"], outside, 80, False),
        (submitter, ray["head"], 8265, True),
        (submitter, ray["head"], 6379, False),
        (submitter, mlflow, 5000, False),
        (operator, ray["head"], 8265, True),
        (operator, mlflow, 5000, False),
        (pipelines, mlflow, 5000, False),
        (mlflow, postgres, 5432, True),
        (mlflow, store, 9000, True),
        (mlflow, outside, 443, False),
        (ray["head"], store, 9000, True),
        (submitter, store, 9000, False),
        (Pod({"app": "ast-upload"}), outside, 443, True),
        (Pod({"app": "ast-upload"}), mlflow, 5000, False),
        (postgres, outside, 443, False),
        (stray, mlflow, 5000, False),
        (stray, outside, 443, False),
        (outside, ray["head"], 8265, False),
        *((pod, names, 53, True) for pod in (ray["worker"], mlflow, submitter)),
    ):
        assert allows(local, source, target, port) is may, (source, target, port)
    assert allows(kubeflow, pipelines, mlflow, 5000)
    assert not allows(kubeflow, pipelines, ray["head"], 8265)


def test_role_of_pipelines_grants_only_what_a_step_needs() -> None:
    documents = overlay("kubeflow")
    granted = {
        (resource, verb)
        for rule in one(documents, "Role")["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip
    assert granted == {
        *(("rayjobs", verb) for verb in ("create", "get", "delete")), ("pods", "list"), ("pods/log", "get"),
    }  # fmt: skip
    binding = one(documents, "RoleBinding")
    assert binding["roleRef"]["name"] == one(documents, "Role")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]


def test_overlays_differ_in_worker_groups_and_object_store() -> None:
    def groups(name: str) -> dict[str, tuple[int, str]]:
        cluster = one(overlay(name), "RayCluster")
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
    assert groups("multi-node") == groups("kubeflow") == {"cpu": (32, "0"), "gpu": (8, "8")}
    assert not [d for d in overlay("queued") if d["kind"] == "RayCluster"]  # it would hold its GPUs also without a job
    assert "object-store" in {d["metadata"]["name"] for d in overlay("local") if d["kind"] == "StatefulSet"}
    for name in ("gpu", "multi-node"):
        (gpu,) = [g for g in one(overlay(name), "RayCluster")["spec"]["workerGroupSpecs"] if g["groupName"] == "gpu"]
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu["template"]["spec"][
            "tolerations"
        ]


@pytest.mark.parametrize("job", jobs(), ids=JOBS)
def test_command_of_a_job_parses(job: Manifest) -> None:
    check_ray_job(job, TRACKING)


def test_each_stage_program_has_a_job() -> None:
    of_pipelines_only = {"pipeline/calibrate.py", "pipeline/report.py"}  # `run.py` also does them
    programs = {shlex.split(job["spec"]["entrypoint"])[1] for job in jobs()}
    assert programs == set(SETTINGS) - of_pipelines_only


def test_jobs_that_can_use_gpus_ask_for_them_by_name() -> None:
    """The overlays' GPU groups have no node at first; without `--gpus yes` a job would train on CPUs."""
    for job in (job for job in jobs() if "--recipe demo" not in job["spec"]["entrypoint"]):
        settings = check_ray_job(job, TRACKING)
        assert getattr(settings, "gpus", "yes") == "yes", job["spec"]["entrypoint"]
        assert not hasattr(settings, "gpus") or settings.workers > 0, "Ray's autoscaler does not report its maximum"


def test_jobs_select_the_existing_cluster() -> None:
    name = one(overlay("gpu"), "RayCluster")["metadata"]["name"]
    shared = [job for job in jobs() if "clusterSelector" in job["spec"]]
    assert len(shared) == len(jobs()) - 2
    for job in shared:
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": name}


def container_of(spec: Manifest) -> Manifest:
    """Return the container of Ray's head."""
    container: Manifest = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


def spoil(job: Manifest, change: Callable[[Manifest], object]) -> Manifest:
    spoilt = copy.deepcopy(job)
    change(spoilt["spec"])
    return spoilt


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda spec: spec.update(entrypoint=spec["entrypoint"] + " --no-such-flag 1"), SystemExit),
        (
            lambda spec: spec.update(entrypoint=spec["entrypoint"].replace("audioset_full", "audioset_ful", 1)),
            Exception,
        ),
        (lambda spec: spec.update(entrypoint=spec["entrypoint"].replace("run.py", "runs.py")), AssertionError),
        (lambda spec: spec.update(entrypointNumCpu=1), jsonschema.ValidationError),
        (lambda spec: spec.update(activeDeadlineSeconds="1 day"), jsonschema.ValidationError),
        (lambda spec: spec.update(ttlSecondsAfterFinished=60), AssertionError),  # KubeRay refuses it
        (lambda spec: spec.pop("submitterConfig"), KeyError),  # three lost connections would end a training of days
        (lambda spec: spec.update(backoffLimit=1), AssertionError),  # would delete the cluster
        (lambda spec: spec["submitterPodTemplate"]["spec"].update(hostNetwork=True), AssertionError),
        (
            lambda spec: spec["submitterPodTemplate"]["spec"].update(restartPolice="Never"),
            jsonschema.ValidationError,
        ),
        (
            lambda spec: spec["submitterPodTemplate"]["spec"]["containers"][0].update(image="ast-pipeline:0"),
            AssertionError,
        ),
    ],
)
def test_stale_or_invalid_job_fails_the_check(change, error) -> None:
    job = next(job for job in jobs() if job["metadata"]["generateName"] == "run-")
    check_ray_job(job, TRACKING)
    with pytest.raises(error):
        check_ray_job(spoil(job, change), TRACKING)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.pop("authOptions"),  # KubeRay could not ask Ray how a job is
        lambda spec: spec.update(rayVersion="2.9.0"),
        lambda spec: spec.update(enableInTreeAutoscaling=False),  # no GPU worker would ever start
        lambda spec: spec.update(headGroupSpecs=spec["headGroupSpec"]),
        lambda spec: spec["autoscalerOptions"].pop("securityContext"),  # the namespace would refuse the head
        lambda spec: spec["autoscalerOptions"].update(upscalingMode="Fast"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"].update(automountServiceAccountToken=True),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["volumes"].pop(),
        lambda spec: spec["autoscalerOptions"].pop("version"),  # Ray starts v2, KubeRay expects v1
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].pop("restartPolicy"),
        lambda spec: spec["workerGroupSpecs"][0].update(replicas=2),  # resets what the autoscaler has started
        lambda spec: spec["headGroupSpec"]["template"]["spec"].pop("enableServiceLinks"),
        lambda spec: container_of(spec)["securityContext"].pop("readOnlyRootFilesystem"),
        lambda spec: container_of(spec)["resources"]["requests"].pop("ephemeral-storage"),
        lambda spec: container_of(spec)["volumeMounts"].pop(),  # logs and spilled objects without a limit
        lambda spec: container_of(spec)["resources"]["limits"].update({"ephemeral-storage": "20Gi"}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"].append(
            {"name": "RAY_AUTH_MODE", "value": "token"}
        ),
        lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"]["limits"].clear(),
    ],
)
def test_invalid_cluster_fails_the_check(change) -> None:
    cluster = one(overlay("gpu"), "RayCluster")
    check(cluster)
    with pytest.raises((AssertionError, KeyError, jsonschema.ValidationError)):
        check(spoil(cluster, change))
