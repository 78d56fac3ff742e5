"""Build the wheel, and install it into an environment that has what the wheel requires, and nothing else.

The environment links the packages of this one instead of downloading them: only those that the wheel's metadata
requires, and those that they require. A dependency that pyproject.toml does not name is therefore missing there.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ast_core", "pipeline", "tune")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel."""

    folder: Path
    """Folder of the environment."""

    @property
    def programs(self) -> Path:
        """Folder of its programs."""
        return self.folder / "bin"

    @property
    def packages(self) -> Path:
        """Folder of its packages."""
        return self.folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"

    def run(self, program: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder, without what leads to a checkout."""
        left_out = {"MLFLOW_TRACKING_URI", "PYTHONPATH", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        return subprocess.run(
            [self.programs / program, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that no build folder appears in the checkout; return its path."""
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    words = ["wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*PIP, *words], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, folder: Path) -> Installed:
    """Install a wheel, and links to what it requires, into a new environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    installed = Installed(folder)
    subprocess.run(
        [*PIP, "--python", installed.programs / "python", "install", "--no-deps", "--no-index", wheel], check=True
    )
    (metadata,) = importlib.metadata.distributions(name="ast-pipeline", path=[str(installed.packages)])
    _link(metadata.requires or [], installed.packages)
    return installed


def _link(requirements: Iterable[str], packages: Path) -> None:
    """Link the packages of this environment that the requirements name, and those that they require."""
    waiting = [(Requirement(text), "") for text in requirements]
    done: set[tuple[str, str]] = set()
    while waiting:
        requirement, parent = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": parent}):
            continue
        for extra in {"", *requirement.extras}:
            key = (canonicalize_name(requirement.name), extra)
            if key not in done:
                done.add(key)
                found = importlib.metadata.distribution(requirement.name)
                _link_files(found, packages)
                waiting += [(Requirement(text), extra) for text in found.requires or []]


def _link_files(distribution: importlib.metadata.Distribution, packages: Path) -> None:
    """Link the top-level folders and modules of a distribution."""
    for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        if not (packages / name).exists():
            (packages / name).symlink_to(Path(str(distribution.locate_file(name))))
