"""The cluster of the tests in this folder: one node in namespaces of this machine, or the user's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from build_images import POSTGRES, PRODUCT, PROGRAMS, ROOT, archive_name, build_images
from build_programs import MODULES, build_programs

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("ONE_NODE_CACHE", "~/.cache/ast-pipeline/one-node")).expanduser()
"""Programs and images, some 12 GB. They stay for the next start."""
NEEDED = (
    "go", "git", "containerd", "runc", "buildah", "debootstrap", "iptables", "ipset", "ip", "unshare", "nsenter",
    "openssl",
)  # fmt: skip
START_S = 600
OPERATORS = {"kuberay": "github.com/ray-project/kuberay/ray-operator", "kueue": "sigs.k8s.io/kueue"}
"""Modules whose own manifests install the operators."""
VOLUMES = {
    "data": ("data", 1000, "10Gi"),
    "work": ("work", 1000, "10Gi"),
    "store-object-store-0": ("store", 1000, "10Gi"),
    "database-postgres-0": ("database", 999, "1Gi"),
}
"""Claims of the overlay `local`: the folder, the user and the size of each one's volume."""


@dataclass
class Cluster:
    """A running cluster.

    Args:
        enter: command that runs another one where the cluster's addresses exist; empty for a cluster of the user.
        programs: folder with `kubectl`, or None for that on the PATH.
        kubeconfig: file with the address and the rights of an administrator.
    """

    enter: list[str] = field(default_factory=list)
    programs: Path | None = None
    kubeconfig: Path = Path()

    def run(self, *command: str, input_text: str | None = None, check: bool = True, limit_s: float = 600) -> str:
        """Run a command that may connect to the cluster, and return its output.

        Raises:
            AssertionError: it failed; the message has its output.
        """
        path = os.environ["PATH"] if self.programs is None else f"{self.programs}:{os.environ['PATH']}"
        done = subprocess.run(
            [*self.enter, "env", f"PATH={path}", f"KUBECONFIG={self.kubeconfig}", *command],
            input=input_text, capture_output=True, text=True, check=False, timeout=limit_s,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, line: str, limit_s: float = 600) -> str:
        """Run a command line of the documentation, and return its output."""
        return self.run("bash", "-euo", "pipefail", "-c", line, limit_s=limit_s)

    def kubectl(self, *words: str, check: bool = True, limit_s: float = 600) -> str:
        """Run kubectl, and return its output."""
        return self.run("kubectl", *words, check=check, limit_s=limit_s)


@contextlib.contextmanager
def use_cluster() -> Iterator[Cluster]:
    """Use the cluster of KUBECONFIG, or start one for the time of the context and remove all of it at the end."""
    own = os.environ.get("KUBECONFIG")
    if own:
        yield Cluster(kubeconfig=Path(own))
        return
    missing = [name for name in NEEDED if shutil.which(name) is None]
    assert not missing, (
        f"{', '.join(missing)} cannot be found; docs/guides/kubernetes.md has the command that installs them."
    )
    build_programs(CACHE / "programs")
    build_images(CACHE / "programs", CACHE / "images")
    with tempfile.TemporaryDirectory(prefix="one-node-") as folder, _running(Path(folder)) as cluster:
        _load_images(cluster)
        _install(cluster, Path(folder))
        yield cluster


@contextlib.contextmanager
def _running(state: Path) -> Iterator[Cluster]:
    """Start the node; afterwards end all its processes, whose mounts and network the kernel then removes."""
    command = [
        *("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"),
        *(sys.executable, str(HERE / "start_node.py"), str(state), str(CACHE / "programs")),
    ]
    with (state / "node.log").open("wb") as output:
        node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        end_s = time.monotonic() + START_S
        while not (state / "started").exists():
            assert node.poll() is None, (state / "node.log").read_text(encoding="utf-8")
            assert time.monotonic() < end_s, f"The node did not start within {START_S} s."
            time.sleep(1)
        first = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text(encoding="ascii").split()[0]
        enter = ["nsenter", f"--target={first}", "--net", "--mount", "--pid", "--ipc", "--uts", f"--wdns={ROOT}"]
        yield Cluster(enter, CACHE / "programs", state / "keys" / "admin.kubeconfig")
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
        _remove_groups()


def _remove_groups() -> None:
    """Remove the control groups of the pods, which are the machine's."""
    for _ in range(50):
        folders = [own for own in Path("/sys/fs/cgroup").glob("*/kubepods*") if own.is_dir()]
        for folder in folders:
            for group in sorted(folder.rglob("*/"), key=lambda own: len(own.parts), reverse=True):
                with contextlib.suppress(OSError):
                    group.rmdir()
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not folders:
            return
        time.sleep(0.2)  # a killed process leaves its group a moment later


def _load_images(cluster: Cluster) -> None:
    for image in (*PROGRAMS.values(), POSTGRES, PRODUCT):
        archive = CACHE / "images" / archive_name(image)
        cluster.run("ctr", "--namespace=k8s.io", "images", "import", str(archive), limit_s=900)


def _install(cluster: Cluster, state: Path) -> None:
    """Install what a cluster has before the product comes: names, volumes, KubeRay and Kueue."""
    cluster.kubectl("apply", "-f", str(HERE / "cluster" / "names.yaml"))
    for name, (folder, user, _) in VOLUMES.items():
        path = state / "volumes" / folder
        path.mkdir(parents=True)
        os.chown(path, user, user)
        cluster.run("kubectl", "apply", "-f", "-", input_text=yaml.safe_dump(_volume(name, path)))
    cluster.kubectl("create", "namespace", "kuberay-operator")
    for name in OPERATORS:
        cluster.kubectl("apply", "--server-side", "-k", str(_write_operator(name, state)))
    cluster.kubectl("rollout", "status", "-n=kuberay-operator", "deployment/kuberay-operator", "--timeout=300s")
    cluster.kubectl("rollout", "status", "-n=kueue-system", "deployment/kueue-controller-manager", "--timeout=300s")
    cluster.kubectl("rollout", "status", "-n=kube-system", "deployment/coredns", "--timeout=300s")


def _write_operator(name: str, state: Path) -> Path:
    """Write the kustomization of an operator into a folder; kustomize wants a relative path to the module."""
    command = ["go", "list", "-m", "-f={{.Dir}}", OPERATORS[name]]
    module = subprocess.run(command, cwd=MODULES / name, check=True, capture_output=True, text=True).stdout.strip()
    folder = state / name
    folder.mkdir()
    text = (HERE / "cluster" / f"{name}.yaml").read_text(encoding="utf-8")
    text = text.replace("MODULE", os.path.relpath(module, folder))
    (folder / "kustomization.yaml").write_text(text, encoding="utf-8")
    return folder


def _volume(claim: str, path: Path) -> dict[str, object]:
    """Return a volume in a folder of the node, for one claim of the product."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": claim},
        "spec": {
            "capacity": {"storage": VOLUMES[claim][2]},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": "ast", "name": claim},
            "hostPath": {"path": str(path)},
        },
    }
