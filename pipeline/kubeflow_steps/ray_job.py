"""Commands that run as RayJobs on a Kubernetes cluster.

KubeRay submits the command to the cluster that the RayJob selects; the submitter's pod has the command's log.
"""

from __future__ import annotations

import os
import time
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ast_core.errors import UserError, require
from pipeline.cli.sigterm import exit_on_sigterm

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
POLL_S = 5.0
PATIENCE_S = 600.0
"""Seconds without an answer of the Kubernetes API after which the step fails; the job itself keeps running."""
STOP_S = 60.0
"""Seconds after SIGTERM at which the step ends, even if the RayJob could not be deleted by then."""
ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
"""KubeRay's `jobDeploymentStatus` of a RayJob that will not change any more."""
STILL_RUNS = frozenset({"DeadlineExceeded", "SubmissionFailed"})
"""Reasons for which KubeRay calls a RayJob failed without stopping its command on a cluster that it did not make."""
Manifest = dict[str, Any]


def run_ray_job(manifest: Manifest, poll_s: float = POLL_S) -> None:
    """Create a RayJob, print its log and wait for its end.

    A RayJob that succeeded is deleted; one whose command failed stays for inspection. If this process gets SIGTERM,
    which Kubeflow sends to a cancelled step, the RayJob is deleted and KubeRay stops its command. The same happens
    after the deadline and after a failed submission: the command may still run and hold its GPUs.

    Args:
        manifest: the RayJob, with `metadata.namespace` and `metadata.generateName`.
        poll_s: seconds between two requests for the status.

    Raises:
        UserError: the API refuses the RayJob or does not answer, or the command failed (with KubeRay's message).
    """
    _load_kube_config()
    with exit_on_sigterm(STOP_S):
        job = _RayJob.create(manifest)
        try:
            status = job.follow(poll_s)
        except (KeyboardInterrupt, SystemExit):
            job.delete()
            print(f"Stopped: RayJob {job.name} is deleted.", flush=True)
            raise
    if status.get("jobStatus") == "SUCCEEDED":
        job.delete()
        return
    reason = status.get("reason") or status.get("jobStatus") or status.get("jobDeploymentStatus")
    message = status.get("message", "KubeRay gave no message")
    if reason in STILL_RUNS:
        job.delete()
        message += " Its command may have been running; the RayJob is deleted, so that KubeRay stops it."
    raise UserError(f"RayJob {job.namespace}/{job.name} failed ({reason}): {message}")


def _load_kube_config() -> None:
    """Load the cluster's address as kubectl does, or from the pod that runs this process."""
    file = os.environ.get("KUBECONFIG")
    try:
        if file:
            config.load_kube_config(file)
        else:
            config.load_config()
    except config.ConfigException as error:
        raise UserError(
            f"No Kubernetes cluster is configured ({error}). Set KUBECONFIG, or run this in a pod."
        ) from error


class _RayJob:
    """An existing RayJob, and the position in its log up to which lines were printed."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self._objects, self._pods = client.CustomObjectsApi(), client.CoreV1Api()
        self._read_at = 0.0  # time.monotonic() when the log was last read
        self._last = ("", "")  # time of the last printed line

    @classmethod
    def create(cls, manifest: Manifest) -> _RayJob:
        """Create the RayJob; raise UserError if Kubernetes refuses it or cannot be reached."""
        namespace = manifest["metadata"]["namespace"]
        try:
            made = client.CustomObjectsApi().create_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, manifest
            )
        except ApiException as error:
            advice = (
                "Install KubeRay."
                if error.status == 404
                else "Give this pod's service account the Role in k8s/components."
            )
            raise UserError(
                f"Kubernetes refused a RayJob in the namespace {namespace}: {error.status} {error.reason}. {advice}"
            ) from error
        except HTTPError as error:
            raise UserError(
                f"The Kubernetes API cannot be reached: {error}. Check the address in KUBECONFIG."
            ) from error
        name = made["metadata"]["name"]
        print(f"RayJob {namespace}/{name}: {manifest['spec']['entrypoint']}", flush=True)
        return cls(namespace, name)

    def follow(self, poll_s: float) -> Manifest:
        """Print the log until the RayJob ends, and return its status.

        Raises:
            UserError: the RayJob was deleted, or the API did not answer for `PATIENCE_S`.
        """
        seen, heard = "", time.monotonic()
        while True:
            try:
                status = self._read_status()
                self._print_new_lines()
                heard = time.monotonic()
            except (ApiException, HTTPError) as error:
                gone = getattr(error, "status", None) == 404
                require(
                    not gone, f"RayJob {self.namespace}/{self.name} was deleted before it ended. Run the step again."
                )
                away_s = time.monotonic() - heard
                require(
                    away_s < PATIENCE_S,
                    f"The Kubernetes API has not answered for {away_s:.0f} s ({_short_reason(error)}). "
                    f"RayJob {self.name} may still run; delete it, then run the step again.",
                )
            else:
                state = f"{status.get('jobDeploymentStatus', '')} {status.get('jobStatus', '')}".strip()
                if state != seen:
                    print(f"RayJob {self.name}: {state}", flush=True)
                    seen = state
                if status.get("jobDeploymentStatus") in ENDED:
                    return status
            time.sleep(poll_s)

    def delete(self) -> None:
        """Delete the RayJob if it still exists; KubeRay then stops its command."""
        try:
            self._objects.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self.name)
        except ApiException as error:
            require(
                error.status == 404,
                f"RayJob {self.namespace}/{self.name} could not be deleted: {error.reason}. Delete it with kubectl.",
            )

    def _read_status(self) -> Manifest:
        """Return the `status` of the RayJob, empty before KubeRay has set it."""
        found = self._objects.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self.name)
        status: Manifest = found.get("status") or {}
        return status

    def _print_new_lines(self) -> None:
        """Print the new lines of the submitter's log, found by their times; do nothing before the log exists."""
        try:
            pods = self._pods.list_namespaced_pod(self.namespace, label_selector=f"job-name={self.name}").items
            if not pods:
                return
            newest = max(pods, key=lambda pod: pod.metadata.creation_timestamp)
            now = time.monotonic()
            since = {"since_seconds": int(now - self._read_at) + 30} if self._read_at else {}
            text = self._pods.read_namespaced_pod_log(newest.metadata.name, self.namespace, timestamps=True, **since)
        except ApiException as error:
            if error.status in {400, 404}:  # the container has not started, or the pod is gone
                return
            raise
        self._read_at = now
        for line in text.splitlines():
            stamp, _, words = line.partition(" ")
            second, _, fraction = stamp.rstrip("Z").partition(".")
            moment = (second, fraction.ljust(9, "0"))  # Kubernetes leaves out a fraction's last zeros
            if moment > self._last:
                self._last = moment
                print(words, flush=True)


def _short_reason(error: ApiException | HTTPError) -> str:
    """Return an error's status and reason, without the headers that an ApiException prints."""
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)
