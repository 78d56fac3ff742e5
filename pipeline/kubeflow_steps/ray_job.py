"""One command as a RayJob of a Kubernetes cluster: made, followed with its log to the end, deleted if this is stopped.

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
"""Time that the Kubernetes API may be away before the step gives up; the job itself goes on meanwhile."""
STOP_S = 60.0
"""Seconds after SIGTERM at which the step ends, even if the RayJob could not be deleted by then."""
ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
"""KubeRay's `jobDeploymentStatus` of a RayJob that will not change any more."""
Manifest = dict[str, Any]


def run_ray_job(manifest: Manifest, poll_s: float = POLL_S) -> None:
    """Create a RayJob and follow it to its end. One that succeeded is deleted, one that failed stays to be looked at.

    If this process is told to stop (SIGTERM, as Kubeflow does to a cancelled step), the RayJob is deleted, whereupon
    KubeRay stops its command.

    Args:
        manifest: the RayJob, with `metadata.namespace` and `metadata.generateName`.
        poll_s: seconds between looks.

    Raises:
        UserError: the API refuses the RayJob or stays away, or the command failed, with KubeRay's message.
    """
    _load_config()
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
    raise UserError(
        f"RayJob {job.namespace}/{job.name} failed ({reason}): {status.get('message', 'without a message')}"
    )


def _load_config() -> None:
    """As kubectl finds its cluster, or as a pod does."""
    file = os.environ.get("KUBECONFIG")
    try:
        if file:
            config.load_kube_config(file)
        else:
            config.load_config()
    except config.ConfigException as error:
        raise UserError(
            f"There is no Kubernetes to submit to ({error}). Set KUBECONFIG, or run this in a pod."
        ) from error


class _RayJob:
    """A RayJob that is there, and how much of its log was passed on."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self._objects, self._pods = client.CustomObjectsApi(), client.CoreV1Api()
        self._read_at = 0.0  # time.monotonic() of the last look at the log
        self._last = ("", "")  # time of the last line that was passed on

    @classmethod
    def create(cls, manifest: Manifest) -> _RayJob:
        namespace = manifest["metadata"]["namespace"]
        try:
            made = client.CustomObjectsApi().create_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, manifest
            )
        except ApiException as error:
            advice = (
                "Is KubeRay installed?" if error.status == 404 else "Has this pod's account the Role of k8s/components?"
            )
            raise UserError(
                f"Kubernetes takes no RayJob in {namespace}: {error.status} {error.reason}. {advice}"
            ) from error
        except HTTPError as error:
            raise UserError(f"The Kubernetes API cannot be reached: {error}.") from error
        name = made["metadata"]["name"]
        print(f"RayJob {namespace}/{name}: {manifest['spec']['entrypoint']}", flush=True)
        return cls(namespace, name)

    def follow(self, poll_s: float) -> Manifest:
        """Pass the log on until the RayJob has ended; gives its status. UserError if it is gone, or the API is."""
        seen, heard = "", time.monotonic()
        while True:
            try:
                status = self._status()
                self._pass_log_on()
                heard = time.monotonic()
            except (ApiException, HTTPError) as error:
                gone = getattr(error, "status", None) == 404
                require(not gone, f"RayJob {self.namespace}/{self.name} was deleted before it ended.")
                away_s = time.monotonic() - heard
                require(
                    away_s < PATIENCE_S,
                    f"The Kubernetes API is away for {away_s:.0f} s ({_cause(error)}); {self.name} may go on.",
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
        """Delete it; KubeRay then stops what still runs of it. One that is gone is as good."""
        try:
            self._objects.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self.name)
        except ApiException as error:
            require(error.status == 404, f"RayJob {self.namespace}/{self.name} could not be deleted: {error.reason}.")

    def _status(self) -> Manifest:
        found = self._objects.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self.name)
        status: Manifest = found.get("status") or {}
        return status

    def _pass_log_on(self) -> None:
        """Print the submitter's lines that are new, by their times. A log that is not there yet is no fault."""
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


def _cause(error: ApiException | HTTPError) -> str:
    """Without the headers that a whole API error lists."""
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)
