"""Start a Kubernetes node with its control plane, as the first process of new namespaces: start_node.py STATE PROGRAMS.

The namespaces have no network device but their own, so no packet of the cluster can leave them. When this process ends,
the kernel ends every other process of the cluster, and its mounts go with them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NODE_ADDRESS = "10.240.0.1"
SERVICES = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"
HERE = Path(__file__).resolve().parent
START_S = 180


def main(state: Path, programs: Path) -> None:
    """Start everything in order, and wait until a program ends or this process is killed."""
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    _mount_own_folders(state)
    _make_network()
    keys = state / "keys"
    keys.mkdir(exist_ok=True)
    _run("sh", str(HERE / "certificates.sh"), NODE_ADDRESS, FIRST_SERVICE, folder=keys)
    shutil.copy(HERE / "node" / "pods.conflist", Path("/run/cni"))
    running = {}
    for name, command in _commands(state).items():
        program = _start(name, command, state)
        running[program.pid] = program
        if name == "etcd":
            _wait_for("http://127.0.0.1:2379/health")
        if name == "kube-apiserver":
            _wait_for_command("kubectl", "--kubeconfig", str(keys / "admin.kubeconfig"), "get", "--raw", "/readyz")
        if name == "kubelet":
            _wait_for_command("kubectl", "--kubeconfig", str(keys / "admin.kubeconfig"), "get", "node", "one-node")
    (state / "started").touch()
    while True:  # the first process of a process namespace also inherits the containers' orphans
        pid, status = os.wait()
        if pid in running:
            sys.exit(f"{running[pid].args[0]} ended with status {status}; its output is in {state / 'output'}.")


def _mount_own_folders(state: Path) -> None:
    _run("mount", "--make-rshared", "/")  # the kubelet passes mounts on to containers
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    for folder in ("/run/cni", "/run/lock"):
        Path(folder).mkdir()
    for name in ("log", "output", "kubelet", "containerd", "etcd", "pod-logs"):
        (state / name).mkdir(exist_ok=True)
    _run("mount", "--bind", str(state / "log"), "/var/log")  # the kubelet makes /var/log/containers


def _make_network() -> None:
    """Make the bridges of the node and of its pods, and a route for service addresses, which have no device."""
    for words in (
        "link set lo up",
        "link add node type bridge",
        f"address add {NODE_ADDRESS}/24 dev node",
        "link set node up",
        "link add pods type bridge",
        "address add 10.244.0.1/24 dev pods",
        "link set pods up",
        f"route add {SERVICES} dev pods",
    ):
        _run("ip", *words.split())
    for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        Path("/proc/sys", name).write_text("1", encoding="ascii")


def _commands(state: Path) -> dict[str, list[str]]:
    """Return the programs in the order of their start, with their flags."""
    keys, configs = state / "keys", _write_configs(state)
    return {
        "etcd": [
            "etcd",
            f"--data-dir={state / 'etcd'}",
            "--unsafe-no-fsync",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        "containerd": ["containerd", "--config", str(configs / "containerd.toml")],
        "kube-apiserver": [
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={NODE_ADDRESS}",
            f"--client-ca-file={keys / 'ca.crt'}",
            f"--tls-cert-file={keys / 'apiserver.crt'}",
            f"--tls-private-key-file={keys / 'apiserver.key'}",
            f"--kubelet-client-certificate={keys / 'kubelet-client.crt'}",
            f"--kubelet-client-key={keys / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={keys / 'service-accounts.key'}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
        ],
        "kube-controller-manager": [
            "kube-controller-manager",
            f"--kubeconfig={keys / 'controller-manager.kubeconfig'}",
            f"--root-ca-file={keys / 'ca.crt'}",
            f"--service-account-private-key-file={keys / 'service-accounts.key'}",
            "--use-service-account-credentials",
            "--allocate-node-cidrs",
            "--cluster-cidr=10.244.0.0/16",
            "--leader-elect=false",
        ],
        "kube-scheduler": ["kube-scheduler", f"--kubeconfig={keys / 'scheduler.kubeconfig'}", "--leader-elect=false"],
        "kubelet": [
            "kubelet",
            f"--config={configs / 'kubelet.yaml'}",
            f"--kubeconfig={keys / 'kubelet.kubeconfig'}",
            f"--root-dir={state / 'kubelet'}",
            f"--node-ip={NODE_ADDRESS}",
            "--hostname-override=one-node",
        ],
        "kube-proxy": ["kube-proxy", f"--config={configs / 'kube-proxy.yaml'}"],
        "kube-router": [
            "kube-router",
            f"--kubeconfig={keys / 'network-policies.kubeconfig'}",
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
            "--hostname-override=one-node",
            f"--service-cluster-ip-range={SERVICES}",
        ],
    }


def _write_configs(state: Path) -> Path:
    configs = state / "configs"
    configs.mkdir(exist_ok=True)
    for name in ("containerd.toml", "kubelet.yaml", "kube-proxy.yaml"):
        text = (HERE / "node" / name).read_text(encoding="utf-8")
        (configs / name).write_text(text.replace("STATE", str(state)), encoding="utf-8")
    return configs


def _start(name: str, command: list[str], state: Path) -> subprocess.Popen[bytes]:
    with (state / "output" / f"{name}.log").open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _run(*command: str, folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _wait_for(url: str) -> None:
    _wait_for_command(sys.executable, "-c", f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)")


def _wait_for_command(*command: str) -> None:
    end_s = time.monotonic() + START_S
    while (done := subprocess.run(command, capture_output=True, check=False)).returncode:
        if time.monotonic() > end_s:
            sys.exit(f"{' '.join(command)} did not succeed within {START_S} s: {done.stderr.decode()[-500:]}")
        time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
