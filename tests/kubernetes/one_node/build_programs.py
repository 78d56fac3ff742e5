"""Build the programs of a Kubernetes node from Go modules: build_programs.py FOLDER.

Go checks the modules against the sums that are next to this file, and compiles only what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

MODULES = Path(__file__).resolve().parent / "programs"
KUBERNETES = "v1.34.4"
VERSION = " ".join(
    f"-X {package}.gitVersion={KUBERNETES}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
)


def build_programs(folder: Path) -> None:
    """Write the programs into a folder.

    Raises:
        CalledProcessError: Go could not download or compile one; it prints why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module in sorted(own for own in MODULES.iterdir() if (own / "go.mod").exists()):
        target = "tool" if "\ntool " in (module / "go.mod").read_text(encoding="utf-8") else "."
        print(f"building {module.name}", flush=True)  # noqa: T201  # it takes minutes
        subprocess.run(
            ["go", "build", "-trimpath", "-buildvcs=false", f"-ldflags=-s -w {VERSION}", f"-o={folder}/", target],
            cwd=module,
            env=os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"},
            check=True,
        )
    shutil.copy2(folder / "server", folder / "etcd")  # Go names a program by the last part of its path


if __name__ == "__main__":
    build_programs(Path(sys.argv[1]))
