"""The rules of KubeRay and Kueue for their resources, and schemas for machines without the real definitions.

`crd_schemas` reads the real definitions. Where they are missing, the schemas here take their place: fields, types and
enumerations that k8s/ uses, after the API types of KubeRay 1.5.1 and Kueue's v1beta2. `manifest_checks` validates the
pods inside with Kubernetes' own schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import crd_schemas
import jsonschema

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHARE: Schema = {"type": "number", "minimum": 0}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
KUBERNETES: Schema = {"type": "object"}
"""Schema of a value with one of Kubernetes' own types."""
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^[0-9.]+([EPTGMk]i?|m)?$"}


def one_of(*values: str) -> Schema:
    """Return the schema of one of these words."""
    return {"enum": list(values)}


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object with only these fields."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def several(item: Schema) -> Schema:
    """Return the schema of a list with at least one item."""
    return {"type": "array", "items": item, "minItems": 1}


AUTOSCALER = fields(
    version=one_of("v1", "v2"), upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    idleTimeoutSeconds=COUNT, image=TEXT, imagePullPolicy=TEXT, env={"type": "array"}, envFrom={"type": "array"},
    volumeMounts={"type": "array"}, securityContext=KUBERNETES, resources=KUBERNETES,
)  # fmt: skip
HEAD = fields(
    ("template",), template=KUBERNETES, rayStartParams=LABELS, serviceType=TEXT, headService=KUBERNETES,
    enableIngress=FLAG, resources=LABELS, labels=LABELS,
)  # fmt: skip
WORKERS = fields(
    ("groupName", "template", "minReplicas", "maxReplicas"), groupName=TEXT, template=KUBERNETES, rayStartParams=LABELS,
    replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT, idleTimeoutSeconds=COUNT, suspend=FLAG,
    scaleStrategy=KUBERNETES, resources=LABELS, labels=LABELS,
)  # fmt: skip
CLUSTER = fields(
    ("headGroupSpec",), headGroupSpec=HEAD, workerGroupSpecs={"type": "array", "items": WORKERS}, rayVersion=TEXT,
    authOptions=fields(("mode",), mode=one_of("disabled", "token")), enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER, suspend=FLAG, managedBy=TEXT, headServiceAnnotations=LABELS,
    gcsFaultToleranceOptions=KUBERNETES, upgradeStrategy=KUBERNETES,
)  # fmt: skip
JOB = fields(
    entrypoint=TEXT, entrypointNumCpus=SHARE, entrypointNumGpus=SHARE, entrypointResources=TEXT, runtimeEnvYAML=TEXT,
    jobId=TEXT, metadata=LABELS, clusterSelector=LABELS, rayClusterSpec=CLUSTER, submitterPodTemplate=KUBERNETES,
    submitterConfig=fields(backoffLimit=COUNT), activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT, ttlSecondsAfterFinished=COUNT, shutdownAfterJobFinishes=FLAG, suspend=FLAG, managedBy=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"), deletionStrategy=KUBERNETES,
)  # fmt: skip
SERVICE = fields(
    ("rayClusterConfig",), rayClusterConfig=CLUSTER, serveConfigV2=TEXT, serveService=KUBERNETES,
    upgradeStrategy=KUBERNETES, excludeHeadPodFromServeSvc=FLAG, rayClusterDeletionDelaySeconds=COUNT,
)  # fmt: skip
QUOTA = fields(
    ("name", "nominalQuota"), name=TEXT, nominalQuota=QUANTITY, borrowingLimit=QUANTITY, lendingLimit=QUANTITY
)
FLAVORS = several(fields(("name", "resources"), name=TEXT, resources=several(QUOTA)))
PREEMPTION = fields(
    withinClusterQueue=one_of("Never", "LowerPriority", "LowerOrNewerEqualPriority"),
    reclaimWithinCohort=one_of("Never", "LowerPriority", "Any"),
)  # fmt: skip
CLUSTER_QUEUE = fields(
    resourceGroups=several(fields(("coveredResources", "flavors"), coveredResources=TEXTS, flavors=FLAVORS)),
    namespaceSelector=KUBERNETES, preemption=PREEMPTION, queueingStrategy=one_of("StrictFIFO", "BestEffortFIFO"),
)  # fmt: skip
KUEUE = "kueue.x-k8s.io/v1beta2"
PROMETHEUS = "monitoring.coreos.com/v1"
RULE = fields(
    ("alert", "expr"), alert=TEXT, expr=TEXT, labels=LABELS, annotations=LABELS, **{"for": TEXT},
)  # fmt: skip
SPECS: Mapping[tuple[str, str], Schema] = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): JOB,
    ("ray.io/v1", "RayService"): SERVICE,
    (KUEUE, "ClusterQueue"): CLUSTER_QUEUE,
    (KUEUE, "LocalQueue"): fields(("clusterQueue",), clusterQueue=TEXT),
    (KUEUE, "ResourceFlavor"): fields(nodeLabels=LABELS, nodeTaints={"type": "array"}),
    (KUEUE, "WorkloadPriorityClass"): fields(),
    (PROMETHEUS, "PodMonitor"): fields(
        ("selector", "podMetricsEndpoints"), selector=KUBERNETES, podMetricsEndpoints=several(KUBERNETES)
    ),
    (PROMETHEUS, "ServiceMonitor"): fields(
        ("selector", "endpoints"), selector=KUBERNETES, endpoints=several(KUBERNETES), namespaceSelector=KUBERNETES
    ),
    (PROMETHEUS, "PrometheusRule"): fields(
        ("groups",), groups=several(fields(("name", "rules"), name=TEXT, rules=several(RULE)))
    ),
}


def check_by_hand(manifest: Mapping[str, Any]) -> None:
    """Raise jsonschema.ValidationError if a field is unknown to the schemas of this file."""
    assert set(manifest) <= {"apiVersion", "kind", "metadata", "spec", "value", "description"}
    jsonschema.validate(manifest.get("spec", {}), SPECS[manifest["apiVersion"], manifest["kind"]])


def check_custom(manifest: Mapping[str, Any]) -> None:
    """Raise an error if the operator would refuse this resource."""
    if crd_schemas.available():
        crd_schemas.check_definition(dict(manifest))
    else:
        check_by_hand(manifest)
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayJob":
        assert spec.get("shutdownAfterJobFinishes") or "ttlSecondsAfterFinished" not in spec
        assert ("clusterSelector" in spec) != ("rayClusterSpec" in spec)
        # A retry makes a new cluster: some versions of KubeRay delete the selected one for that, others refuse the job.
        assert "clusterSelector" not in spec or not spec.get("backoffLimit")
        assert "ray.io/cluster" in spec.get("clusterSelector", {"ray.io/cluster": ""})
        assert "clusterSelector" not in spec or not spec.get("suspend")
        queued = "kueue.x-k8s.io/queue-name" in manifest["metadata"].get("labels", {})
        assert not queued or "rayClusterSpec" in spec, "Kueue does not manage jobs on a cluster that exists"
        assert len(manifest["metadata"].get("name", manifest["metadata"].get("generateName", "") + 5 * "x")) <= 47
    if manifest["kind"] == "ClusterQueue":
        for group in spec["resourceGroups"]:
            for flavor in group["flavors"]:
                assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
