"""KubeRay's v1 and Kueue's v1beta1 resources as JSON Schemas, and the rules of their admission.

The schemas (fields, types and enumerations) are written by hand after the projects' API types, because no package has
their CRDs. `manifest_checks` validates the pods inside them with Kubernetes' own schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
QUOTA = fields(
    ("name", "nominalQuota"), name=TEXT, nominalQuota=QUANTITY, borrowingLimit=QUANTITY, lendingLimit=QUANTITY
)
FLAVORS = several(fields(("name", "resources"), name=TEXT, resources=several(QUOTA)))
PREEMPTION = fields(
    withinClusterQueue=one_of("Never", "LowerPriority", "LowerOrNewerEqualPriority"),
    reclaimWithinCohort=one_of("Never", "LowerPriority", "Any"), borrowWithinCohort=KUBERNETES,
)  # fmt: skip
CLUSTER_QUEUE = fields(
    resourceGroups=several(fields(("coveredResources", "flavors"), coveredResources=TEXTS, flavors=FLAVORS)),
    namespaceSelector=KUBERNETES, preemption=PREEMPTION, cohort=TEXT, fairSharing=KUBERNETES,
    queueingStrategy=one_of("StrictFIFO", "BestEffortFIFO"), flavorFungibility=KUBERNETES, admissionChecks=TEXTS,
    stopPolicy=one_of("None", "Hold", "HoldAndDrain"),
)  # fmt: skip
SPECS: Mapping[tuple[str, str], Schema] = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): JOB,
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): CLUSTER_QUEUE,
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): fields(("clusterQueue",), clusterQueue=TEXT),
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): fields(nodeLabels=LABELS, nodeTaints={"type": "array"}),
}


def check_custom(manifest: Mapping[str, Any]) -> None:
    """Raise an error if the operator would refuse this resource."""
    spec = manifest.get("spec", {})
    assert set(manifest) <= {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.validate(spec, SPECS[manifest["apiVersion"], manifest["kind"]])
    if manifest["kind"] == "RayJob":
        assert spec.get("shutdownAfterJobFinishes") or "ttlSecondsAfterFinished" not in spec
        assert ("clusterSelector" in spec) != ("rayClusterSpec" in spec)
        # A retry makes a new cluster: some versions of KubeRay delete the selected one for that, others refuse the job.
        assert "clusterSelector" not in spec or not spec.get("backoffLimit")
        assert "ray.io/cluster" in spec.get("clusterSelector", {"ray.io/cluster": ""})
        assert len(manifest["metadata"].get("name", manifest["metadata"].get("generateName", "") + 5 * "x")) <= 47
    if manifest["kind"] == "ClusterQueue":
        for group in spec["resourceGroups"]:
            for flavor in group["flavors"]:
                assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
