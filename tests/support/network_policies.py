"""Connections that the NetworkPolicies of an overlay allow."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """One end of a connection; a pod without labels in another namespace stands for any pod there.

    An end outside the cluster has an `address` and the namespace "".
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "ast"
    address: str = ""


def allows(documents: Sequence[Manifest], source: Pod, target: Pod, port: int) -> bool:
    """Return whether the policies of both ends allow TCP to this port."""
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    return _allows_direction(policies, "Egress", source, target, port) and _allows_direction(
        policies, "Ingress", target, source, port
    )


def _allows_direction(policies: Sequence[Manifest], direction: str, own: Pod, other: Pod, port: int) -> bool:
    """Return whether no policy of this direction selects the pod, or one of them allows the other end and the port."""
    selecting = [policy["spec"] for policy in policies if _selects(policy, direction, own)]
    rules = [rule for spec in selecting for rule in spec.get(direction.lower(), [])]
    side = "to" if direction == "Egress" else "from"
    return not selecting or any(
        ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
        and (side not in rule or any(_matches(peer, other) for peer in rule[side]))
        for rule in rules
    )


def _selects(policy: Manifest, direction: str, pod: Pod) -> bool:
    spec = policy["spec"]
    inside = pod.namespace == policy["metadata"]["namespace"]
    return inside and direction in spec["policyTypes"] and _has_labels(pod.labels, spec["podSelector"])


def _matches(peer: Manifest, pod: Pod) -> bool:
    if "ipBlock" in peer:
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return bool(pod.address) and ipaddress.ip_address(pod.address) in network
    if "namespaceSelector" in peer:
        namespace = {"kubernetes.io/metadata.name": pod.namespace}
        return _has_labels(namespace, peer["namespaceSelector"]) and _has_labels(
            pod.labels, peer.get("podSelector", {})
        )
    return pod.namespace == "ast" and _has_labels(pod.labels, peer["podSelector"])


def _has_labels(labels: Mapping[str, str], selector: Manifest) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()
