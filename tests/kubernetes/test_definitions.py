"""Every custom resource of k8s/, checked strictly against the operators' real definitions, where these are there."""

from __future__ import annotations

import copy

import crd_schemas
import custom_resources
import jsonschema
import pytest
import yaml
from manifest_checks import CUSTOM, check
from manifests import COMPONENTS, JOBS, OVERLAYS, Manifest, jobs, overlay, with_components

real = pytest.mark.skipif(not crd_schemas.available(), reason=crd_schemas.MISSING)
FOR_GPU_GROUP = ("logs", "spot", "storage", "workload-identity")
"""Components that change the GPU group."""


def custom(documents: list[Manifest]) -> list[Manifest]:
    return [document for document in documents if document["apiVersion"].startswith(CUSTOM)]


@real
def test_definitions_of_the_supported_versions_are_there() -> None:
    for kind in ("RayCluster", "RayJob"):
        assert {name[:13] for name in crd_schemas.sources(kind)} >= {"kuberay-1.5.1", "kuberay-1.7.0"}
    assert all(crd_schemas.sources(kind) for kind in crd_schemas.KINDS)


@real
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_fits_every_definition(name: str) -> None:
    for manifest in custom(overlay(name)):
        crd_schemas.check_definition(manifest)


@real
@pytest.mark.parametrize("job", jobs(), ids=JOBS)
def test_job_fits_every_definition(job: Manifest) -> None:
    crd_schemas.check_definition(job)


@pytest.mark.parametrize(
    ("base", "component"),
    [(base, own) for base in ("gpu", "local") for own in COMPONENTS if base == "gpu" or own not in FOR_GPU_GROUP],
)
def test_overlay_with_a_component_is_valid(base: str, component: str) -> None:
    for manifest in with_components(base, component):
        check(manifest)


def test_overlay_with_all_components_is_valid() -> None:
    documents = with_components("multi-node", *COMPONENTS)
    for manifest in documents:
        check(manifest)
    names = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("by_hand", [pytest.param(False, marks=real, id="real"), pytest.param(True, id="by hand")])
@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(rayVersions="2"),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplica=1),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="8"),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["autoscalerOptions"].update(upscalingMode="Fast"),
        lambda spec: spec["authOptions"].update(mode="none"),
    ],
)
def test_unknown_or_wrong_field_of_a_cluster_is_refused(change, by_hand: bool) -> None:
    cluster = copy.deepcopy(next(document for document in overlay("gpu") if document["kind"] == "RayCluster"))
    validate = custom_resources.check_by_hand if by_hand else crd_schemas.check_definition
    validate(cluster)
    change(cluster["spec"])
    with pytest.raises(jsonschema.ValidationError):
        validate(cluster)


def test_schemas_by_hand_accept_what_is_in_the_repository() -> None:
    documents = [document for name in OVERLAYS for document in overlay(name)]
    for manifest in custom([*documents, *jobs(), *with_components("gpu", "monitoring")]):
        custom_resources.check_by_hand(manifest)


def test_list_of_exported_definitions_is_read_as_files_of_one_are(tmp_path, monkeypatch) -> None:
    """`kubectl get crd -o yaml` writes a list; a definition of another operator is passed over."""
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": {
                "type": "object",
                "properties": {
                    "port": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True},
                    "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                    "closed": {"type": "object", "nullable": True},
                },
            },
        },
    }  # fmt: skip
    definition = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "ray.io", "names": {"kind": "RayJob"},
            "versions": [{"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }  # fmt: skip
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"kind": "List", "items": [definition]}))
    (tmp_path / "other.yaml").write_text("kind: CustomResourceDefinition\nspec:\n  names:\n    kind: Other\n")
    monkeypatch.setattr(crd_schemas, "FOLDER", tmp_path)
    crd_schemas._schemas.cache_clear()
    try:
        job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}}
        crd_schemas.check_definition(job | {"spec": {"port": "http", "open": {"any": 1}, "closed": None}})
        for spec in ({"port": 1.5}, {"prot": 1}, {"closed": {"any": 1}}):
            with pytest.raises(jsonschema.ValidationError):
                crd_schemas.check_definition(job | {"spec": spec})
    finally:
        crd_schemas._schemas.cache_clear()
