"""The server of k8s/serve: its definition, its Ray Serve configuration, its secrets, connections and numbers."""

from __future__ import annotations

import ast
import copy
from decimal import Decimal

import crd_schemas
import jsonschema
import pytest
import yaml
from manifest_checks import check, quantity
from manifests import K8S, ROOT, Manifest, load_kustomization, overlay, pod_templates, ray_groups, server, values
from network_policies import Pod, allows


def one(kind: str, name: str = "") -> Manifest:
    (found,) = [own for own in server() if own["kind"] == kind and name in {"", own["metadata"]["name"]}]
    return found


def config() -> Manifest:
    found: Manifest = yaml.safe_load(one("RayService")["spec"]["serveConfigV2"])
    return found


def workers() -> Manifest:
    (group,) = one("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return dict(group)


def test_each_manifest_is_valid_and_its_pods_are_restricted() -> None:
    for manifest in server():
        check(manifest)
        assert manifest["metadata"]["namespace"] == "ast"
    assert "Values" not in {manifest["kind"] for manifest in server()}


def test_names_it_needs_are_in_every_overlay_with_a_cluster() -> None:
    service = one("RayService")
    for name in ("gpu", "local", "kubeflow", "queued"):
        there = {(own["kind"], own["metadata"]["name"]) for own in overlay(name)}
        for pod, template in pod_templates(service):
            assert ("PriorityClass", template["spec"]["priorityClassName"]) in there, pod
            assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in there, pod
        taken = {(own["kind"], own["metadata"]["name"]) for own in server()}
        assert not taken & there


def test_ray_serve_takes_the_configuration_and_finds_the_application() -> None:
    schema = pytest.importorskip("ray.serve.schema", exc_type=ImportError)
    schema.ServeDeploySchema.model_validate(config())
    (application,) = config()["applications"]
    module, _, name = application["import_path"].partition(":")
    assert config()["http_options"] == {"host": "0.0.0.0", "port": 8000, "keep_alive_timeout_s": 75}
    assert application["route_prefix"] == "/"
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.is_file():
        pytest.skip(f"{module} is not in this checkout")
    functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in functions


def test_arguments_are_settings_of_the_server() -> None:
    deployment = pytest.importorskip("pipeline.serving.serve_deployment")
    from ast_core.serialization import from_dict  # noqa: PLC0415

    arguments = config()["applications"][0]["args"]
    own = {name: arguments.pop(name) for name in ("replicas", "drain_s")}
    options = from_dict(deployment.DeploymentOptions, {"server": arguments, **own})
    assert options.server.model.endswith("@champion")  # a new champion is taken over
    assert not options.server.tracking  # each pod has the address, from the same value
    for _, template in ray_groups(one("RayService")):
        (variable,) = [own for own in template["spec"]["containers"][0]["env"] if own["name"] == "MLFLOW_TRACKING_URI"]
        assert variable["value"] == values()["tracking"]


def test_each_replica_has_a_worker_with_its_cores_and_its_gpu() -> None:
    group, arguments = workers(), config()["applications"][0]["args"]
    assert [group["minReplicas"], group["maxReplicas"]] == arguments["replicas"]
    assert group["minReplicas"] >= 2, "the loss of a node would stop the server"
    assert group["rayStartParams"]["num-cpus"] == "1"  # what a replica asks for
    (container,) = group["template"]["spec"]["containers"]
    assert int(container["resources"]["requests"]["cpu"]) == arguments["threads"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (arguments["gpus"] == "yes")
    head = one("RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_tokens_come_from_a_secret_that_the_server_reads_and_no_one_else() -> None:
    file = config()["applications"][0]["args"]["tokens"]
    holders = {
        name: template["spec"] for name, template in ray_groups(one("RayService")) if "serve-tokens" in str(template)
    }
    assert list(holders) == ["model"]  # the head starts no replica
    spec = holders["model"]
    (volume,) = [own for own in spec["volumes"] if own["name"] == "tokens"]
    assert volume["secret"] == {"secretName": "serve-tokens", "defaultMode": 0o440}
    (mount,) = [own for own in spec["containers"][0]["volumeMounts"] if own["name"] == "tokens"]
    assert f"{mount['mountPath']}/tokens" == file
    assert mount["readOnly"] is True
    assert spec["securityContext"]["fsGroup"] == 1000


def test_probes_ask_ray_whether_the_node_lives_and_the_application_whether_it_predicts() -> None:
    (container,) = workers()["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8000}
    alive = container["livenessProbe"]
    assert alive["httpGet"] == container["startupProbe"]["httpGet"] == {
        "path": "/api/local_raylet_healthz", "port": 52365,
    }  # fmt: skip
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 60  # a replica that computes is not killed for it
    # The drain of Ray and of the server ends before Kubernetes kills the pod.
    (seconds,) = [int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"] if word.isdigit()]
    drain_s = config()["applications"][0]["args"]["drain_s"]
    assert drain_s < seconds < workers()["template"]["spec"]["terminationGracePeriodSeconds"]
    assert one("RayService")["spec"]["rayClusterDeletionDelaySeconds"] > drain_s


def test_only_named_clients_reach_the_server_and_it_reaches_only_what_it_needs() -> None:
    head, model = (Pod({"app": "ast-serve", "ray.io/node-type": kind, "ast-pipeline/mlflow-client": "true"})
                   for kind in ("head", "worker"))  # fmt: skip
    client, stray = Pod({"ast-pipeline/serve-client": "true"}), Pod({"app": "stray"})
    training, mlflow, postgres = (Pod({"app": app}) for app in ("ast-ray", "mlflow", "postgres"))
    gateway, operator, monitoring, outside = (
        Pod({}, space) for space in ("ingress-nginx", "kuberay-operator", "monitoring", "somewhere")
    )
    names = Pod({"k8s-app": "kube-dns"}, "kube-system")
    documents = [*overlay("gpu"), *server()]
    for source, target, port, may in (
        (client, model, 8000, True),
        (client, model, 8265, False),
        (client, head, 8000, False),
        (client, mlflow, 5000, False),
        (gateway, model, 8000, True),
        (gateway, model, 8265, False),
        (gateway, head, 8000, False),
        (stray, model, 8000, False),
        (outside, model, 8000, False),
        (training, model, 8000, False),
        (model, training, 6379, False),
        (operator, head, 8265, True),
        (operator, model, 8000, True),
        (monitoring, model, 8000, True),
        (monitoring, model, 8080, True),
        (monitoring, head, 8265, False),
        (model, head, 6379, True),
        (head, model, 31_234, True),
        (model, mlflow, 5000, True),
        (model, postgres, 5432, False),
        (model, outside, 443, True),
        (model, outside, 80, False),
        (head, outside, 6443, True),  # the autoscaler's Kubernetes
        (model, outside, 6443, False),
        (model, names, 53, True),
    ):
        assert allows(documents, source, target, port) is may, (source, target, port)


def test_budgets_keep_a_replica_and_the_head() -> None:
    for name, kind in (("serve-head", "head"), ("serve-model", "worker")):
        spec = one("PodDisruptionBudget", name)["spec"]
        assert spec == {"minAvailable": 1, "selector": {"matchLabels": {"app": "ast-serve", "ray.io/node-type": kind}}}


def test_a_bundle_fits_the_disk_of_a_pod() -> None:
    (container,) = workers()["template"]["spec"]["containers"]
    limit = quantity(container["resources"]["limits"]["ephemeral-storage"])
    sizes = [own["emptyDir"]["sizeLimit"] for own in workers()["template"]["spec"]["volumes"]
             if "emptyDir" in own and own["name"] != "memory"]  # fmt: skip
    assert sum(map(quantity, sizes)) <= limit


def small_server() -> list[Manifest]:
    return load_kustomization(K8S / "serve-local")


def test_small_server_has_two_replicas_without_an_autoscaler() -> None:
    for manifest in small_server():
        check(manifest)
    (service,) = [own for own in small_server() if own["kind"] == "RayService"]
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    arguments = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert arguments["model"] == "models:/ast-demo@champion"  # k8s/jobs/demo.yaml registers it
    assert arguments["replicas"] == [group["replicas"]] * 2
    assert service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is False
    own, full = copy.deepcopy(arguments), config()["applications"][0]["args"]
    for changed in (own, full):
        for name in ("model", "replicas", "threads"):
            changed.pop(name)
    assert own == full


def test_small_server_fits_two_cores_next_to_the_overlay_local() -> None:
    pods: list[tuple[int, Manifest]] = [
        (1, template["spec"]) for manifest in overlay("local") for _, template in pod_templates(manifest)
    ]
    (service,) = [own for own in small_server() if own["kind"] == "RayService"]
    (head, worker) = (template["spec"] for _, template in ray_groups(service))
    pods += [(1, head), (2, worker)]
    cpus, memory = (
        sum(count * quantity(own["resources"]["requests"][name]) for count, spec in pods for own in spec["containers"])
        for name in ("cpu", "memory")
    )
    assert quantity(worker["containers"][0]["resources"]["requests"]["cpu"]) >= Decimal(
        "0.2"
    )  # KubeRay's init container
    assert cpus <= Decimal("1.7")  # Kubernetes and the operators need the rest
    assert memory <= 10.5 * 2**30


@pytest.mark.skipif(not crd_schemas.available(), reason=crd_schemas.MISSING)
def test_definitions_of_the_supported_versions_accept_the_server() -> None:
    assert {name[:13] for name in crd_schemas.sources("RayService")} >= {"kuberay-1.5.1", "kuberay-1.7.0"}
    crd_schemas.check_definition(one("RayService"))
    crd_schemas.check_definition(next(own for own in small_server() if own["kind"] == "RayService"))


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(serveConfig="x"),
        lambda spec: spec.pop("rayClusterConfig"),
        lambda spec: spec["rayClusterConfig"].update(rayVersion="2.9.0"),
        lambda spec: spec["rayClusterConfig"].pop("authOptions"),
        lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].update(replicas=2),
        lambda spec: spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"].update(hostNetwork=True),
        lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["volumes"].pop(),
    ],
)
def test_a_wrong_server_fails_the_check(change) -> None:
    service = copy.deepcopy(one("RayService"))
    change(service["spec"])
    with pytest.raises((AssertionError, KeyError, jsonschema.ValidationError)):
        check(service)
