"""The components of k8s/: what each adds to an overlay."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from manifest_checks import check
from manifests import K8S, Manifest, overlay, pod_templates, upload_job, values, with_components
from network_policies import Pod, allows
from ray.dashboard.modules.reporter import reporter_agent

from pipeline.reporting import prometheus

METADATA = Pod({}, "", "169.254.169.254")


def ray_pods(documents: list[Manifest]) -> dict[str, Manifest]:
    (cluster,) = [document for document in documents if document["kind"] == "RayCluster"]
    return {name.rpartition(" ")[2]: template for name, template in pod_templates(cluster)}


def one(documents: list[Manifest], kind: str, name: str = "") -> Manifest:
    (found,) = [d for d in documents if d["kind"] == kind and name in {"", d["metadata"]["name"]}]
    return found


def test_each_ray_pod_gets_the_object_store_keys_from_a_secret() -> None:
    """Without the component the secret is optional, with it the pods wait for it."""
    secret = {"name": "run-storage"}
    for documents, reference in (
        (overlay("multi-node"), secret | {"optional": True}),
        (overlay("local"), secret | {"optional": True}),
        (with_components("multi-node", "storage"), secret),
    ):
        for template in ray_pods(documents).values():
            assert template["spec"]["containers"][0]["envFrom"] == [{"secretRef": reference}]


def test_upload_job_can_write_what_the_others_read() -> None:
    job = upload_job()
    check(job)
    for name in ("gpu", "local"):
        claim = one(overlay(name), "PersistentVolumeClaim", "data")["spec"]
        assert claim["accessModes"] == [
            "ReadWriteMany" if name == "gpu" else "ReadWriteOnce"
        ]  # no driver provisions ReadOnlyMany
        for template in ray_pods(overlay(name)).values():
            (mount,) = [own for own in template["spec"]["containers"][0]["volumeMounts"] if own["name"] == "data"]
            assert mount["readOnly"] is True
    spec = job["spec"]["template"]["spec"]
    (mount,) = [own for own in spec["containers"][0]["volumeMounts"] if own["name"] == "data"]
    assert not mount.get("readOnly")
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "data"}} in spec["volumes"]


def test_logs_outlive_their_pods() -> None:
    documents = with_components("gpu", "logs")
    config = one(documents, "ConfigMap", "fluent-bit")["data"]["fluent-bit.conf"]
    source, target = re.search(r"Path (/\S+)/\*", config)[1], re.search(r"^ +Path (/work\S+)", config, re.MULTILINE)[1]
    for name, template in ray_pods(documents).items():
        (sidecar,) = template["spec"]["initContainers"]
        assert sidecar["restartPolicy"] == "Always"  # it ends after Ray, so that the last lines are copied
        mounts = {mount["mountPath"]: mount for mount in sidecar["volumeMounts"]}
        ray = {mount["mountPath"]: mount["name"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["/tmp/ray"] == {"name": ray["/tmp/ray"], "mountPath": "/tmp/ray", "readOnly": True}, name
        assert source.startswith("/tmp/ray/")
        assert target.startswith(f"{mounts['/work']['mountPath']}/")
        assert "${POD_NAME}" in target  # pods do not write to the same file
        assert "POD_NAME" in {variable["name"] for variable in sidecar["env"]}


def test_spot_workers_tolerate_what_the_head_is_kept_off() -> None:
    documents = with_components("gpu", "spot")
    templates = ray_pods(documents)
    own = values()["spot"]

    def terms(template: Manifest) -> list[Manifest]:
        affinity = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = affinity["nodeSelectorTerms"]
        return term["matchExpressions"]

    for name in ("cpu", "gpu"):
        assert terms(templates[name]) == own["matchExpressions"]
        assert templates[name]["spec"]["tolerations"] == own["tolerations"]
    keys = {word["key"] for word in own["matchExpressions"]}
    services = [one(documents, "Deployment", "mlflow")["spec"], one(documents, "StatefulSet", "postgres")["spec"]]
    for template in (templates["head"], *(service["template"] for service in services)):
        assert keys <= {word["key"] for word in terms(template) if word["operator"] == "NotIn"}
        assert "tolerations" not in template["spec"]
    assert templates["gpu"]["spec"]["nodeSelector"] == values()["gpu"]["nodeSelector"]


def test_keyless_pods_reach_the_metadata_server_and_no_other_port_80() -> None:
    documents = with_components("gpu", "workload-identity")
    accounts = {d["metadata"]["name"]: d["metadata"]["annotations"] for d in documents if d["kind"] == "ServiceAccount"}
    assert accounts == dict.fromkeys(("ast", "ast-head"), values()["identity"]["annotations"])
    ray, mlflow, submitter = (Pod({"app": app}) for app in ("ast-ray", "mlflow", "ast-submitter"))
    outside = Pod({}, "somewhere")
    for source, target, port, may in (
        (ray, METADATA, 80, True), (ray, METADATA, 988, True), (ray, outside, 80, False),
        (mlflow, METADATA, 80, True), (mlflow, outside, 443, True), (submitter, METADATA, 80, False),
    ):  # fmt: skip
        assert allows(documents, source, target, port) is may, (source, target, port)
    assert not allows(overlay("gpu"), ray, METADATA, 80)


def test_backup_reaches_the_database_and_only_it() -> None:
    documents = with_components("gpu", "backup")
    backup, postgres, mlflow = (Pod({"app": app}) for app in ("ast-backup", "postgres", "mlflow"))
    assert allows(documents, backup, postgres, 5432)
    assert not allows(documents, backup, mlflow, 5000)
    assert allows(documents, backup, Pod({"k8s-app": "kube-dns"}, "kube-system"), 53)
    assert not allows(overlay("gpu"), backup, postgres, 5432)
    server = one(documents, "StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"][0]
    (dump,) = one(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert dump["image"] == server["image"]  # pg_dump must not be older than the server


@pytest.mark.parametrize("fails", [False, True])
def test_backup_keeps_the_newest_complete_dumps(tmp_path: Path, fails: bool) -> None:
    """Run the component's own script with programs that stand in for PostgreSQL's."""
    documents = with_components("gpu", "backup")
    (dump,) = one(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    folder, programs = tmp_path / "backups", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for day in range(1, 21):
        (folder / f"mlflow-202601{day:02}T031700Z.dump").write_text("old")
    (programs / "pg_dump").write_text(
        '#!/bin/sh\nfor word; do case $word in --file=*) echo new > "${word#--file=}";; esac; done\n'
    )
    (programs / "pg_restore").write_text(f"#!/bin/sh\nexit {int(fails)}\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    *shell, script = dump["command"]
    command = [*shell, script.replace("/backups", str(folder))]
    env = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert (done.returncode != 0) is fails, done.stderr
    kept = sorted(path.name for path in folder.glob("*.dump"))
    assert len(kept) == (20 if fails else 14)
    newest = (folder / kept[-1]).read_text()
    assert newest == ("old" if fails else "new\n")


def test_metrics_of_the_alerts_are_exported() -> None:
    documents = with_components("gpu", "monitoring")
    rules = [rule for group in one(documents, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    assert {"AstTrainingStalled", "AstTrainingRestarts", "AstRecordingsRejected", "AstNodeDiskLow"} <= {
        r["alert"] for r in rules
    }
    text = Path(prometheus.__file__).read_text()
    for rule in rules:
        for name in re.findall(r"\bray_(\w+)", rule["expr"]):
            base = name.removesuffix("_total")
            assert f'"{base}"' in text or base in reporter_agent.METRICS_GAUGES, (
                f"{rule['alert']}: nothing exports ray_{name}"
            )
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert {"summary", "description"} <= set(rule["annotations"])
        assert rule["labels"]["severity"] in {"warning", "critical"}
    complete = with_components("gpu", "monitoring", "backup")
    named = re.findall(r"(deployment|statefulset|cronjob)=\"(\w+)\"", "".join(rule["expr"] for rule in rules))
    assert len(named) == 3
    for kind, name in named:
        kinds = {"deployment": "Deployment", "statefulset": "StatefulSet", "cronjob": "CronJob"}
        assert one(complete, kinds[kind], name)


def test_operators_metrics_are_scraped_where_its_chart_puts_them() -> None:
    monitor = one(with_components("queued", "monitoring"), "ServiceMonitor")["spec"]
    assert monitor["namespaceSelector"] == {"matchNames": ["kuberay-operator"]}
    assert monitor["selector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert json.loads((K8S / "monitoring" / "dashboard.json").read_text())["panels"]
