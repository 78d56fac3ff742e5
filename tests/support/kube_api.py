"""A server with the part of the Kubernetes API that RayJobs need; a RayJob's entrypoint runs as a local process.

It replaces a cluster with KubeRay in tests. Paths, verbs and the fields of `status` are KubeRay's; the times at which
they change are not.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlparse

import yaml

TOKEN = "of-the-step"
JOBS = "/apis/ray.io/v1/namespaces/ast/rayjobs"
PODS = "/api/v1/namespaces/ast/pods"


@dataclass
class Job:
    """A RayJob, its process and its log."""

    manifest: dict[str, Any]
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    given_up: str = ""
    born: str = ""
    written: bool = False

    def follow(self) -> None:
        """Store the command's output, each line with its time."""
        for line in self.process.stdout:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
            self.log.append(f"{now.rstrip('0')}Z {line}")  # Kubernetes also writes no trailing zeros
        self.written = True

    def status(self) -> dict[str, Any]:
        """Return the status that KubeRay would set."""
        code = self.process.poll()
        if self.given_up:
            return {
                "jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": self.given_up,
                "message": "The RayJob has passed the activeDeadlineSeconds.",
            }  # fmt: skip
        if code is None or not self.written:
            return {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
        if code == 0:
            return {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
        said = f"Job entrypoint command failed with exit code {code}, last available logs:\n{''.join(self.log)}"
        return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": said}


class KubeAPI:
    """Context manager of the server; `asked` lists requests, `faults` holds HTTP codes for the next requests."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.created: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.faults: list[int] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def do_DELETE(self) -> None:
                self.answer()

            def answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                api.asked.append(f"{self.command} {self.path}")
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    code, found = 401, {"kind": "Status", "code": 401}
                elif api.faults:
                    code = api.faults.pop(0)
                    found = {"kind": "Status", "code": code}
                else:
                    code, found = api.handle(self.command, self.path, body)
                content = found.encode() if isinstance(found, str) else json.dumps(found).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Self:
        """Start to serve."""
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and all commands."""
        for name in list(self.jobs):
            self.remove(name)
        self.server.shutdown()
        self.server.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        """Write the kubeconfig with which a client finds the server."""
        address = f"http://127.0.0.1:{self.server.server_port}"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": address}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))

    def handle(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        """Return the HTTP code and the content for one request."""
        parsed = urlparse(path)
        name = parsed.path.rpartition("/")[2]
        if verb == "POST" and parsed.path == JOBS:
            return 201, self.create(body)
        if parsed.path == PODS:
            wanted = parse_qs(parsed.query)["labelSelector"][0].removeprefix("job-name=")
            own = [_pod(wanted, self.jobs[wanted].born)] if wanted in self.jobs else []
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": own}
        if parsed.path.startswith(PODS) and name == "log":
            return self._log(parsed.path.split("/")[-2].removesuffix("-pod"), parse_qs(parsed.query))
        if parsed.path.startswith(JOBS) and name in self.jobs:
            if verb == "DELETE":
                self.remove(name)
                return 200, {"kind": "Status", "status": "Success"}
            return 200, self.jobs[name].manifest | {"status": self.jobs[name].status()}
        return 404, {"kind": "Status", "code": 404, "reason": "NotFound"}

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Start a RayJob's command."""
        self.created.append(manifest)
        name = f"{manifest['metadata']['generateName']}{len(self.created)}"
        process = subprocess.Popen(
            ["sh", "-c", f"exec {manifest['spec']['entrypoint']}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        named = manifest | {"metadata": manifest["metadata"] | {"name": name}}
        job = self.jobs[name] = Job(named, process, born=datetime.datetime.now(datetime.UTC).isoformat())
        threading.Thread(target=job.follow, daemon=True).start()
        return named

    def remove(self, name: str) -> None:
        """Delete a job and stop its command, as KubeRay does."""
        job = self.jobs.pop(name)
        job.process.kill()
        job.process.wait()

    def _log(self, name: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        job = self.jobs[name]
        if not job.log:
            return 400, {
                "kind": "Status",
                "code": 400,
                "reason": "BadRequest",
            }  # the answer for a container that is starting
        assert query["timestamps"] == ["True"]
        return 200, "".join(job.log)


def _pod(job: str, born: str) -> dict[str, Any]:
    return {"metadata": {"name": f"{job}-pod", "namespace": "ast", "creationTimestamp": born}}
