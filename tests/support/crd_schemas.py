"""The real definitions of custom resources, which the repository does not hold: strict JSON schemas of them.

The folder is that of `AST_CRDS`, else ../shared/crds next to the checkout. It has files of one definition or of a list
of them, as `kubectl get crd NAME... -o yaml` writes them; several versions of an operator can lie in it together.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from manifests import ROOT, Manifest

Schema = dict[str, Any]
FOLDER = Path(os.environ.get("AST_CRDS") or ROOT.parent / "shared" / "crds")
MISSING = (
    f"{FOLDER} does not exist, so the definitions of the custom resources are not checked. Set AST_CRDS to a folder "
    "that has them; docs/guides/kubernetes.md says how to export them from a cluster."
)
KINDS = (
    "RayCluster", "RayJob", "RayService", "ClusterQueue", "LocalQueue", "ResourceFlavor", "WorkloadPriorityClass",
    "PodMonitor", "ServiceMonitor", "PrometheusRule",
)  # fmt: skip
"""Kinds that k8s/ uses; files with other definitions only are not parsed."""


def available() -> bool:
    """Return whether there are real definitions."""
    return FOLDER.is_dir()


def check_definition(manifest: Manifest) -> None:
    """Raise jsonschema.ValidationError if a definition of the kind refuses a manifest or one of its fields."""
    found = _schemas().get((manifest["apiVersion"], manifest["kind"]), {})
    assert found, f"no definition in {FOLDER} serves {manifest['apiVersion']} {manifest['kind']}"
    for name, validator in found.items():
        error = jsonschema.exceptions.best_match(validator.iter_errors(manifest))
        if error is not None:
            error.message = f"{name}: {error.message} (at {error.json_path})"
            raise error


def sources(kind: str) -> set[str]:
    """Return the names of the files that define a kind."""
    return {name for (_, own), found in _schemas().items() if own == kind for name in found}


@functools.cache
def _schemas() -> dict[tuple[str, str], dict[str, jsonschema.Draft4Validator]]:
    """Return the validators by API version and kind, and then by file."""
    found: dict[tuple[str, str], dict[str, jsonschema.Draft4Validator]] = {}
    for path in sorted(FOLDER.glob("*.y*ml")):
        text = path.read_text()
        if not re.search(rf"^\s+kind: ({'|'.join(KINDS)})$", text, re.MULTILINE):
            continue
        for definition in _definitions(yaml.load_all(text, yaml.CSafeLoader)):
            spec = definition["spec"]
            for version in (own for own in spec["versions"] if own["served"]):
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                found.setdefault(key, {})[path.name] = jsonschema.Draft4Validator(schema)
    return found


def _definitions(documents: Iterator[Manifest]) -> Iterator[Manifest]:
    for document in documents:
        items = document.get("items", [document]) if document else []
        yield from (item for item in items if item["kind"] == "CustomResourceDefinition")


def strict(schema: Schema) -> Schema:
    """Return a structural schema as one that refuses unknown fields, as the API server does with strict validation."""
    own = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {key: value for key, value in own.items() if key != "anyOf"} | {"type": ["integer", "string"]}
    if "properties" in own:
        own["properties"] = {name: strict(value) for name, value in own["properties"].items()}
    if isinstance(own.get("additionalProperties"), dict):
        own["additionalProperties"] = strict(own["additionalProperties"])
    if "items" in own:
        own["items"] = strict(own["items"])
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if own.get("type") == "object" and "additionalProperties" not in own and not open_to_all:
        own["additionalProperties"] = False
    if own.pop("nullable", False) and "type" in own:
        own["type"] = [own["type"], "null"]
    return own
