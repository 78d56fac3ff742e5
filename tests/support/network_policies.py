"""Who may talk to whom, by the NetworkPolicies of an overlay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """One end of a connection; without labels, of some other namespace, it stands for whatever is there."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "ast"


def admitted(documents: Sequence[Manifest], source: Pod, target: Pod, port: int) -> bool:
    """Whether both ends' policies let TCP through to this port."""
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    return _passes(policies, "Egress", source, target, port) and _passes(policies, "Ingress", target, source, port)


def _passes(policies: Sequence[Manifest], direction: str, own: Pod, other: Pod, port: int) -> bool:
    """No policy of this direction selects the pod, or one of them names the other end and the port."""
    selecting = [policy["spec"] for policy in policies if _selects(policy, direction, own)]
    rules = [rule for spec in selecting for rule in spec.get(direction.lower(), [])]
    side = "to" if direction == "Egress" else "from"
    return not selecting or any(
        ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
        and (side not in rule or any(_is(peer, other) for peer in rule[side]))
        for rule in rules
    )


def _selects(policy: Manifest, direction: str, pod: Pod) -> bool:
    spec = policy["spec"]
    inside = pod.namespace == policy["metadata"]["namespace"]
    return inside and direction in spec["policyTypes"] and _has(pod.labels, spec["podSelector"])


def _is(peer: Manifest, pod: Pod) -> bool:
    if "namespaceSelector" in peer:
        namespace = {"kubernetes.io/metadata.name": pod.namespace}
        return _has(namespace, peer["namespaceSelector"]) and _has(pod.labels, peer.get("podSelector", {}))
    return pod.namespace == "ast" and _has(pod.labels, peer["podSelector"])


def _has(labels: Mapping[str, str], selector: Manifest) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()
