"""Monitoring finds the cluster's ports and pods, and pods and jobs have enough time to end in order."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from manifests import Manifest, jobs, overlay, pod_templates, with_components

from pipeline.cli import sigterm
from pipeline.ray_runtime.drain_node import drain

NAMESPACE = "monitoring"
GRACE_OF_RAY_S = 30
"""Longest time that `ray start --block` takes to end after the hook."""


@pytest.fixture
def watched() -> list[Manifest]:
    """Return the GPU overlay with the monitoring component."""
    return with_components("gpu", "monitoring")


def test_monitor_finds_each_ray_pod_and_the_network_policy_admits_it(watched: list[Manifest]) -> None:
    (monitor,) = [manifest for manifest in watched if manifest["kind"] == "PodMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    cluster = next(manifest for manifest in watched if manifest["kind"] == "RayCluster")
    templates = dict(pod_templates(cluster))
    assert len(templates) == 3  # head, cpu, gpu
    numbers = set()
    for template in templates.values():
        assert wanted.items() <= template["metadata"]["labels"].items()
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        numbers.add(ports[endpoint["port"]])
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    assert {int(group["rayStartParams"]["metrics-export-port"]) for group in groups} == numbers
    policy = next(m for m in watched if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "ray")
    assert policy["spec"]["podSelector"]["matchLabels"] == wanted
    from_there = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}}
    let_in = [rule["ports"] for rule in policy["spec"]["ingress"] if from_there in rule["from"]]
    assert {port["port"] for ports in let_in for port in ports} == numbers


def test_dashboard_is_labelled_for_grafana_and_its_panels_are_distinct(watched: list[Manifest]) -> None:
    (config,) = [manifest for manifest in watched if manifest["kind"] == "ConfigMap"]
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(config["data"]["dashboard.json"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_ending_worker_pod_has_time_to_drain_its_node() -> None:
    cluster = next(manifest for manifest in overlay("gpu") if manifest["kind"] == "RayCluster")
    for group in cluster["spec"]["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:3] == ["python", "-m", drain.__module__]
        assert int(command[3]) + GRACE_OF_RAY_S < spec["terminationGracePeriodSeconds"]


def test_stopped_training_job_has_time_for_a_checkpoint() -> None:
    trainings = [job for job in jobs() if re.search(r"(train|run|search|ensemble)\.py", job["spec"]["entrypoint"])]
    assert len(trainings) == 7
    for job in trainings:
        variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
        assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > sigterm.EXIT_LIMIT_S
