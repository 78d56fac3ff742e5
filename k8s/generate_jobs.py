"""Write k8s/jobs from k8s/values/values.yaml and the overlays: `make manifests`.

Each file is complete, so that `kubectl create -f` needs nothing else. A job with a cluster of its own holds the Ray
cluster of an overlay, as kustomize renders it.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
HOUR_S = 3600
DAY_H = 24
CHECKPOINT = """\
runtimeEnvYAML: | # time to commit a checkpoint when the job is stopped; the default is 3 s
  env_vars: {RAY_JOB_STOP_WAIT_TIME_S: "25"}
"""
SHARED = """\
clusterSelector:
  ray.io/cluster: ast
"""
QUEUE = """\
  labels: # without this class Kueue would take the head's, which is high
    kueue.x-k8s.io/queue-name: ast
    kueue.x-k8s.io/priority-class: ast-training
"""
JOB = """\
# {title}
# {command}
# `make manifests` writes this file from k8s/values/values.yaml: change a copy of it, or the values.
apiVersion: ray.io/v1
kind: RayJob
metadata:
  generateName: {name}-
  namespace: ast
{labels}\
spec:
{cluster}\
  entrypoint: >-
    {entrypoint}
  entrypointNumCpus: 0
{checkpoint}\
  activeDeadlineSeconds: {deadline_s}
  submitterConfig: # the submitter follows the log: it is started again when the connection or its node is lost
    backoffLimit: 50
  submitterPodTemplate:
    metadata:
      labels:
        app: ast-submitter
    spec:
      serviceAccountName: ast
      automountServiceAccountToken: false
      enableServiceLinks: false
      restartPolicy: Never
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: submitter
          image: {image}
          resources:
            requests:
              cpu: 200m
              memory: 512Mi
              ephemeral-storage: 128Mi
            limits:
              memory: 1Gi
              ephemeral-storage: 1Gi
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          volumeMounts:
            - name: scratch
              mountPath: /tmp
      volumes:
        - name: scratch
          emptyDir:
            sizeLimit: 512Mi
{own}"""
UPLOAD = """\
# Fill the claim `data`, which every other pod mounts read only: create this job, then send it a folder.
# kubectl create -n ast -f k8s/jobs/upload.yaml
# kubectl wait -n ast job/upload --for=jsonpath='{{.status.ready}}'=1 --timeout=10m
# kubectl exec -n ast job/upload -- mkdir -p /data/audioset
# tar -C FOLDER -cf - . | kubectl exec -i -n ast job/upload -- tar -C /data/audioset -xf -
# kubectl delete -n ast job/upload
# `make manifests` writes this file from k8s/values/values.yaml: change a copy of it, or the values.
apiVersion: batch/v1
kind: Job
metadata:
  name: upload
  namespace: ast
spec:
  backoffLimit: 2
  activeDeadlineSeconds: 604800
  ttlSecondsAfterFinished: 3600
  template:
    metadata:
      labels:
        app: ast-upload
    spec:
      serviceAccountName: ast
      automountServiceAccountToken: false
      enableServiceLinks: false
      restartPolicy: Never
      terminationGracePeriodSeconds: 5
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        fsGroup: 1000 # not for NFS and EFS: there, give the folder to this user on the server
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: upload
          image: {image}
          command: [sleep, infinity]
          envFrom:
            - secretRef: # to download from an object store
                name: run-storage
                optional: true
          resources:
            requests:
              cpu: 100m
              memory: 256Mi
              ephemeral-storage: 128Mi
            limits:
              memory: 2Gi
              ephemeral-storage: 6Gi
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          volumeMounts:
            - name: data
              mountPath: /data
            - name: scratch
              mountPath: /tmp
      volumes:
        - name: data
          persistentVolumeClaim:
            claimName: data
        - name: scratch
          emptyDir:
            sizeLimit: 5Gi
"""


@dataclass(frozen=True)
class Job:
    """One RayJob.

    Attributes:
        title: first line of its file.
        program: path of the stage's program in the image.
        flags: flags of the program after those that every job has.
        hours: time after which KubeRay calls it failed.
        trains: whether it needs time for a checkpoint when it is stopped.
        recipe: name of the recipe; "" for that of the values.
        reads: whether it reads the recordings.
        cluster: "shared", "own" or "queued".
    """

    title: str
    program: str
    flags: str
    hours: int
    trains: bool = False
    recipe: str = ""
    reads: bool = False
    cluster: str = "shared"


def list_jobs(values: dict[str, Any]) -> dict[str, Job]:
    """Return the RayJobs by the names of their files, with the numbers of the values."""
    own = values["jobs"]
    seeds = " ".join(str(seed) for seed in own["seeds"])
    train = f"--workers {own['trainers']} --gpus yes"
    run = f"{train} --ensemble.seeds {seeds}"
    return {
        "demo": Job(
            "Run all stages on sounds that the demo makes, on two CPUs: a first try, also of the overlay `local`.",
            "pipeline/run.py", "--workers 2 --gpus no", 2, trains=True, recipe="demo",
        ),
        "prepare": Job(
            "Turn recordings into shards, once per data set.",
            "pipeline/prepare.py", f"--workers {own['decoders']}", DAY_H, reads=True,
        ),
        "train": Job(
            "Train one member. For the others, use another name and --seed 1, --seed 2.",
            "pipeline/train.py", f"{train} --seed {own['seeds'][0]}", 7 * DAY_H, trains=True,
        ),
        "combine": Job(
            "Average the epochs of each member and make the ensemble.",
            "pipeline/combine.py", f"--ensemble.seeds {seeds}", 1,
        ),
        "evaluate": Job(
            "Score each test clip once.",
            "pipeline/evaluate.py", f"--workers {own['scorers']} --gpus yes --bootstrap 1000", 4,
        ),
        "register": Job(
            "Register the bundles; the alias moves only to a better version.", "pipeline/register.py", "", 1
        ),
        "run": Job("Run the main job, all stages.", "pipeline/run.py", run, 14 * DAY_H, trains=True, reads=True),
        "run-own-cluster": Job(
            "Run the main job unattended on its own Ray cluster, which KubeRay makes, replaces after a failure and "
            "deletes at the end.",
            "pipeline/run.py", run, 14 * DAY_H, trains=True, reads=True, cluster="own",
        ),
        "run-queued": Job(
            "Run the main job on a Ray cluster of its own that waits in a Kueue queue (overlay `queued`).",
            "pipeline/run.py", run, 14 * DAY_H, trains=True, reads=True, cluster="queued",
        ),
        "ensemble": Job(
            "Train Ensemble-S and Ensemble-M.",
            "tune/ensemble.py", "--workers 1 --gpus yes", 14 * DAY_H, trains=True, reads=True,
        ),
        "study": Job(
            "Run one of the paper's studies, with as many trials at a time as their workers fit.",
            "tune/search.py", f"--workers {own['trialTrainers']} --gpus yes --study overlap --repeats 3", 14 * DAY_H,
            trains=True, reads=True,
        ),
    }  # fmt: skip


def write_job(name: str, job: Job, values: dict[str, Any]) -> str:
    """Return the file of a RayJob."""
    own = values["jobs"]
    words = [
        f"python {job.program} --recipe {job.recipe or own['recipe']}",
        f"--run-dir {f'/work/{job.recipe}' if job.recipe else own['run']}",
        f"--tracking {values['tracking']} --address auto",
        f"--data.source {own['source']}" if job.reads else "",
        job.flags,
    ]
    shared = job.cluster == "shared"
    resumes = "After a failure, the same command continues from the files on /work."
    command = f"kubectl create -n ast -f k8s/jobs/{name}.yaml. {resumes}"
    return JOB.format(
        title=job.title, command=command, name=name, image=values["image"],
        labels=QUEUE if job.cluster == "queued" else "",
        cluster=textwrap.indent(SHARED, "  ") if shared else "",
        entrypoint=" ".join(word for word in words if word),
        checkpoint=textwrap.indent(CHECKPOINT, "  ") if job.trains else "",
        deadline_s=job.hours * HOUR_S,
        own="" if shared else textwrap.indent(write_own_cluster(job.cluster, own), "  "),
    )  # fmt: skip


def write_own_cluster(kind: str, own: dict[str, Any]) -> str:
    """Return the part of a RayJob that holds its cluster."""
    spec = render_cluster(own["ownCluster"])["spec"]
    if kind == "queued":
        fix_size(spec, own["ownWorkers"])
    cluster = yaml.safe_dump(spec, sort_keys=False, width=120)
    return (
        "backoffLimit: 5 # new clusters after a failure; the stages continue from /work\n"
        "shutdownAfterJobFinishes: true\n"
        "ttlSecondsAfterFinished: 600 # to read the logs\n"
        f"rayClusterSpec:\n{textwrap.indent(cluster, '  ')}"
    )


def fix_size(spec: dict[str, Any], workers: dict[str, int]) -> None:
    """Change a cluster so that it has a number of workers from the start, because Kueue admits a fixed size.

    Args:
        spec: spec of the RayCluster.
        workers: number of workers by the name of the group.
    """
    spec["enableInTreeAutoscaling"] = False
    spec.pop("autoscalerOptions", None)
    head = spec["headGroupSpec"]["template"]["spec"]
    head["volumes"] = [volume for volume in head["volumes"] if volume["name"] != "kubernetes-access"]
    head["serviceAccountName"] = "ast"
    for group in spec["workerGroupSpecs"]:
        number = workers[group["groupName"]]
        group.update(replicas=number, minReplicas=number, maxReplicas=number)


def render_cluster(overlay: str) -> dict[str, Any]:
    """Return the Ray cluster of an overlay."""
    documents = yaml.load_all(_render(FOLDER / "overlays" / overlay), yaml.CSafeLoader)
    return next(document for document in documents if document["kind"] == "RayCluster")


@functools.cache
def _render(folder: Path) -> str:
    installed = Path(sys.executable).with_name("kubectl")
    kubectl = str(installed) if installed.exists() else shutil.which("kubectl") or "kubectl"
    return subprocess.run(  # noqa: S603  # our own words
        [kubectl, "kustomize", str(folder)], check=True, capture_output=True, text=True
    ).stdout


def generate(values: dict[str, Any]) -> dict[str, str]:
    """Return the text of each file in k8s/jobs by its name."""
    files = {f"{name}.yaml": write_job(name, job, values) for name, job in list_jobs(values).items()}
    return files | {"upload.yaml": UPLOAD.format(image=values["image"])}


def load_values() -> dict[str, Any]:
    """Read the values of the installation."""
    values: dict[str, Any] = yaml.safe_load((FOLDER / "values" / "values.yaml").read_text())["spec"]
    return values


def main() -> None:
    """Write all files, and remove those of jobs that no longer exist."""
    files = generate(load_values())
    for path in (FOLDER / "jobs").glob("*.yaml"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (FOLDER / "jobs" / name).write_text(text)


if __name__ == "__main__":
    main()
