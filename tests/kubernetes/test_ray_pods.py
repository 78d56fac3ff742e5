"""What Ray needs of its pods: memory for the object store, and a cluster that fits its overlay and its queue."""

from __future__ import annotations

from decimal import Decimal

import pytest
import ray._private.utils as ray_utils
from manifest_checks import add_autoscaler, check, check_ray_job, quantity
from manifests import OVERLAYS, Manifest, jobs, overlay, pod_templates, ray_cluster_spec, ray_groups, values

TRACKING = values()["tracking"]
ALL = [*(document for name in OVERLAYS for document in overlay(name)), *jobs()]
MOST_CPUS, MOST_MEMORY = Decimal("1.7"), 7 * 2**30
"""What the pods of the overlay `local` may request, so that they fit a machine with two cores and 10 GiB."""


def job_named(name: str) -> Manifest:
    return next(job for job in jobs() if job["metadata"]["generateName"] == f"{name}-")


@pytest.mark.parametrize(
    ("group", "template"),
    [
        pytest.param(group, template, id=f"{index}-{group}")
        for index, manifest in enumerate(m for m in ALL if ray_cluster_spec(m))
        for group, template in ray_groups(manifest)
    ],
)
def test_object_store_fits_dev_shm_by_rays_own_rule(group: str, template: Manifest, monkeypatch) -> None:
    """Otherwise Ray keeps the object store on the disk of the node, and only warns."""
    spec = template["spec"]
    shm = next(volume for volume in spec["volumes"] if volume["name"] == "memory")
    shm_bytes = int(quantity(shm["emptyDir"]["sizeLimit"]))
    monkeypatch.setattr(ray_utils, "get_shared_memory_bytes", lambda: shm_bytes)
    limit = int(quantity(spec["containers"][0]["resources"]["limits"]["memory"]))
    assert ray_utils.resolve_object_store_memory(limit) <= shm_bytes, group


def requests(spec: Manifest, resource: str) -> Decimal:
    return sum((quantity(container["resources"]["requests"][resource]) for container in spec["containers"]), Decimal(0))


def test_local_overlay_and_the_demo_fit_two_cores() -> None:
    job = job_named("demo")
    pods = [
        template["spec"]
        for manifest in [*overlay("local"), job]
        for _, template in pod_templates(add_autoscaler(manifest))
    ]
    assert len(pods) == 6  # head, worker, MLflow, PostgreSQL, object store, submitter
    assert sum(requests(spec, "cpu") for spec in pods) <= MOST_CPUS
    assert sum(requests(spec, "memory") for spec in pods) <= MOST_MEMORY


def test_demo_has_the_workers_of_the_local_overlay() -> None:
    (cluster,) = [manifest for manifest in overlay("local") if manifest["kind"] == "RayCluster"]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    settings = check_ray_job(job_named("demo"), TRACKING)
    assert settings.workers == int(group["rayStartParams"]["num-cpus"]) * group["maxReplicas"] == 2
    assert settings.gpus == "no"
    assert settings.data.source == "synthetic"


@pytest.mark.parametrize("name", ["run-own-cluster", "run-queued"])
def test_job_with_its_own_cluster_is_retried_and_cleaned_up(name: str) -> None:
    spec = job_named(name)["spec"]
    assert "clusterSelector" not in spec
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    gpus = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
    ]
    assert "8" in gpus


def test_queued_job_fits_its_quota_with_its_own_priority() -> None:
    queue = {document["kind"]: document for document in overlay("queued") if document["apiVersion"].startswith("kueue")}
    job = job_named("run-queued")
    check(job)
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == queue["LocalQueue"]["metadata"]["name"]
    assert queue["LocalQueue"]["spec"]["clusterQueue"] == queue["ClusterQueue"]["metadata"]["name"]
    priority = queue["WorkloadPriorityClass"]  # otherwise the head's class counts, and the job preempts others
    assert labels["kueue.x-k8s.io/priority-class"] == priority["metadata"]["name"]
    own = {
        document["metadata"]["name"]: document["value"]
        for document in overlay("queued")
        if document["kind"] == "PriorityClass"
    }
    assert priority["value"] == own["ast-training"]
    (group,) = queue["ClusterQueue"]["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == queue["ResourceFlavor"]["metadata"]["name"] != "default-flavor"
    spec = job["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is False  # Kueue admits a cluster of one size
    counts = {"head": 1} | {worker["groupName"]: worker["replicas"] for worker in spec["workerGroupSpecs"]}
    asked: dict[str, Decimal] = {}
    pods = [(counts[name], template["spec"]) for name, template in ray_groups(job)]
    for count, pod in [*pods, (1, job["spec"]["submitterPodTemplate"]["spec"])]:
        for container in pod["containers"]:
            resources = container["resources"]
            gpus = {key: value for key, value in resources["limits"].items() if "/" in key}
            for name, text in (resources["requests"] | gpus).items():
                asked[name] = asked.get(name, Decimal(0)) + count * quantity(text)
    quota = {resource["name"]: quantity(resource["nominalQuota"]) for resource in flavor["resources"]}
    assert set(asked) <= set(group["coveredResources"]), "Kueue admits no pod that asks for something without a quota"
    assert all(asked[name] <= quota[name] for name in asked)
    assert asked["nvidia.com/gpu"] > 0
