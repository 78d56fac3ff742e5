"""Ray nodes on one machine that share nothing but a wire: own addresses in own network namespaces, and own folders.

Each node sees its own folder at the same path (`Nodes.work`), by a mount namespace; of what one writes there, the
others see nothing. A node's namespaces end with the process that holds them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
PORT = 6379
SETTINGS = {
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GLOO_SOCKET_IFNAME": "eth0",  # the machine's name is loopback's to every node
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it asks the dashboard, which is not started
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",  # so that a node is dead after 5 to 15 s
    "RAY_agent_register_timeout_ms": "120000",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

JOIN = 'for attempt in 1 2 3; do "$@" && exit; done'
"""Script that starts a node again: on a busy machine Ray gives one up that takes more than 30 s to start."""


def why_not() -> str:
    """Why there can be no such nodes here; "" if there can."""
    absent = [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]
    if absent:
        return f"there is no {', '.join(absent)}: iproute2 and util-linux make the nodes' namespaces"
    if os.geteuid() != 0:
        return "only root may make network and mount namespaces for the nodes"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], check=False, capture_output=True, text=True)
    return f"namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Node:
    """Namespaces of network, mounts and processes, and what runs in them."""

    name: str
    address: str
    disk: Path
    """What it sees at `Nodes.work`."""
    first: int
    """Its first process, whose end is the end of all."""
    own: list[subprocess.Popen[bytes]]
    """What the tests started for it."""

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return a command line that runs on the node."""
        return ["nsenter", f"--target={self.first}", "--net", "--mount", "--pid", *command]

    def pids(self) -> list[int]:
        """All its processes."""
        network = _network(self.first)
        every = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in every if network and _network(pid) == network]

    def kill(self) -> int:
        """End it as a power cut would, by SIGKILL: raylet, workers and all at once; gives how many there were."""
        victims = len(self.pids()) - 1
        os.kill(self.first, signal.SIGKILL)
        for process in self.own:
            process.wait()
        return victims


class Nodes:
    """A Ray cluster of such nodes; the head has no CPU, so that what works does so elsewhere.

    Args:
        folder: for the nodes' disks and logs.
        environment: of all their processes, such as the object store's keys.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.network = f"10.77.{os.getpid() % 250}"
        self.bridge = f"ast{os.getpid()}"
        self.gateway = f"{self.network}.1"
        """Address of the machine itself, where the tests' servers listen."""
        self.environment = {**SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.by_name: dict[str, Node] = {}
        self._made = 1

    def __enter__(self) -> Self:
        """Lay the wire."""
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        return self

    def __exit__(self, *error: object) -> None:
        """End every process of every node."""
        for name in list(self.by_name):
            self.kill(name)
        _run("ip", "link", "delete", self.bridge)

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the head. The environment is every later node's, too."""
        self.environment |= environment
        self.add("head", cpus=0)

    def add(self, name: str, cpus: int = 1) -> Node:
        """Start a node; it joins by itself."""
        node = self._connected(name)
        head = self.by_name.setdefault("head", node)
        place = ["--head", f"--port={PORT}", "--include-dashboard=false"] if node is head else []
        join = place or [f"--address={head.address}:{PORT}"]
        command = [
            str(Path(sys.executable).parent / "ray"), "start", *join, f"--node-ip-address={node.address}",
            f"--num-cpus={cpus}", "--object-store-memory=100000000", "--block",
        ]  # fmt: skip
        if node is not head:
            command = ["sh", "-c", JOIN, "sh", *command]
        self.by_name[name] = node
        node.own.append(self.launch(name, command, self.folder / f"{name}.log"))
        return node

    def _connected(self, name: str) -> Node:
        self._made += 1
        address, wire = f"{self.network}.{self._made}", f"v{self._made}-{os.getpid()}"
        disk, ray = self.folder / "disks" / name, self.folder / "ray" / name
        for path in (disk, ray, Path("/tmp/ray")):
            path.mkdir(parents=True, exist_ok=True)
        hold = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
        holder = subprocess.Popen([*hold, "sleep", "infinity"], start_new_session=True, stderr=subprocess.DEVNULL)
        node = Node(name, address, disk, _only_child(holder), [holder])
        _run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", str(node.first))
        _run("ip", "link", "set", wire, "master", self.bridge, "up")
        script = f"""
            ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up &&
            ip route add default via {self.gateway} &&
            mount --bind {disk} {self.work} && mount --bind {ray} /tmp/ray && mount -t tmpfs shm /dev/shm
        """
        _run(*node.inside(["sh", "-c", script]))
        return node

    def launch(self, name: str, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on a node, its output to a file."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        line = self.by_name[name].inside(["env", "-C", str(self.folder), *command])
        with log.open("ab") as output:
            return subprocess.Popen(
                line, env={**kept, **self.environment}, stdout=output, stderr=output, start_new_session=True
            )

    @contextlib.contextmanager
    def stage(self, log: str, script: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a stage of the pipeline, with its driver on the head, while the body runs."""
        head = self.by_name["head"]
        command = [sys.executable, str(ROOT / "pipeline" / script), "--address", f"{head.address}:{PORT}", *flags]
        driver = self.launch("head", command, self.folder / log)
        try:
            yield driver
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()

    def run(self, log: str, script: str, *flags: str, seconds: float = 240) -> str:
        """Run a stage to its end and return its output."""
        with self.stage(log, script, *flags) as driver:
            return self.ended(driver, log, seconds)

    def ended(self, driver: subprocess.Popen[bytes], log: str, seconds: float = 240) -> str:
        """Wait for a stage; gives what it said."""
        code = driver.wait(seconds)
        said = (self.folder / log).read_text(errors="replace")
        assert code == 0, said[-6000:]
        return said

    def kill(self, name: str) -> int:
        """End a node; gives how many processes that were."""
        return self.by_name.pop(name).kill()


def _network(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _only_child(holder: subprocess.Popen[bytes]) -> int:
    """Wait for the process that holds a node's namespaces, and return its id."""
    while True:
        assert holder.poll() is None
        for child in Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "sleep":
                    return int(child)
        time.sleep(0.01)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
