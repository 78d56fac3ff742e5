"""A real Ray of several nodes on this machine, on ports of its own: dashboard, job server, metrics, tokens."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

HOST = "127.0.0.1"
LEAN_RAY = Path(__file__).with_name("lean_ray.py")
START_S = 120
"""For a node; on an idle machine it takes five seconds."""


def free_ports(count: int) -> list[int]:
    """Return ports that no process listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """A head and nodes, which `stop` ends with all their processes.

    Args:
        cpus: CPUs of the head.
    """

    dashboard_modules: tuple[str, ...] = ("JobHead", "NodeHead")
    """Parts of the dashboard that are started, each a process or more; those of the job server and the nodes."""

    def __init__(self, cpus: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets' paths have 107 characters at most
        self.token = secrets.token_hex(16)
        self.port, self.dashboard_port, client_port = free_ports(3)
        self.metrics_ports: list[int] = []
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._raylets: list[psutil.Process] = []
        self._start(
            cpus, "--head", f"--port={self.port}", f"--dashboard-host={HOST}",
            f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={client_port}",
            f"--temp-dir={self.folder}",
        )  # fmt: skip

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return f"{HOST}:{self.port}"

    @property
    def dashboard(self) -> str:
        """What `ray job submit --address` takes."""
        return f"http://{HOST}:{self.dashboard_port}"

    def environment(self) -> dict[str, str]:
        """For programs that are to know this cluster, and no other."""
        others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return others | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # jobs run `python`
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_metrics_report_interval_ms": "1000",
            "RAY_agent_register_timeout_ms": "120000",  # the machine may be busy
        }

    def add_node(self, cpus: int) -> psutil.Process:
        """Start another node; its raylet."""
        return self._start(cpus, f"--address={self.address}")

    def raylets(self) -> list[psutil.Process]:
        """Of the nodes that live, the head's first."""
        return [raylet for raylet in self._raylets if raylet.is_running()]

    def nodes(self) -> list[dict[str, Any]]:
        """As the dashboard lists them."""
        summary: list[dict[str, Any]] = self.ask("/nodes?view=summary")["data"]["summary"]
        return summary

    def ask(self, path: str) -> dict[str, Any]:
        """Return the dashboard's answer."""
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            values: dict[str, Any] = json.load(answer)
        return values

    def scrape(self) -> str:
        """Return what Prometheus would scrape from all nodes."""
        text = ""
        for port in self.metrics_ports:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer,
            ):
                text += answer.read().decode()
        return text

    def logs(self) -> str:
        """Return the output of the nodes' worker processes."""
        paths = sorted(self.folder.glob("session_2*/logs/worker-*.out"))
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)

    def ray(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `ray WORDS` against this cluster."""
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        environment = self.environment() | more
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def stop(self) -> None:
        """End every process of it."""
        for node in reversed(self._nodes):
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(node.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            node.kill()
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, cpus: int, *words: str) -> psutil.Process:
        metrics, *agents = free_ports(4)
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")
        ports = [f"--{name}={port}" for name, port in zip(names, agents, strict=True)]
        command = [sys.executable, str(LEAN_RAY), ",".join(self.dashboard_modules), "start", "--block"]
        command += [f"--num-cpus={cpus}", f"--metrics-export-port={metrics}", "--object-store-memory=100000000"]
        with (self.folder / f"node-{len(self._nodes)}.log").open("wb") as log:
            node = subprocess.Popen([*command, *ports, *words], env=self.environment(), stdout=log, stderr=log)
        self._nodes.append(node)
        self.metrics_ports.append(metrics)
        self._raylets.append(self._wait_for_raylet(node, len(self.raylets()) + 1))
        return self._raylets[-1]

    def _wait_for_raylet(self, node: subprocess.Popen[bytes], alive: int) -> psutil.Process:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert node.poll() is None, (self.folder / f"node-{len(self._nodes) - 1}.log").read_text()
            with contextlib.suppress(OSError, psutil.NoSuchProcess, KeyError, ValueError):
                if sum(one["raylet"].get("state") == "ALIVE" for one in self.nodes()) == alive:
                    children = psutil.Process(node.pid).children(recursive=True)
                    return next(child for child in children if child.name() == "raylet")
            time.sleep(0.3)
        raise AssertionError(f"A node of {self.folder} did not start in {START_S} s.")


@contextlib.contextmanager
def running(single: bool) -> Iterator[Cluster]:
    """Start a cluster of a head without CPUs and one node of two CPUs; with `single`, of a head of two CPUs."""
    cluster = Cluster(2 if single else 0)
    try:
        if not single:
            cluster.add_node(2)
        yield cluster
    finally:
        cluster.stop()
