"""A disk of a few megabytes that a process alone sees: a tmpfs in its own mount namespace, with ballast to fill it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096
OWN = ["unshare", "--user", "--map-root-user", "--mount"]


def why_not() -> str:
    """Why there can be no such disk here; "" if there can."""
    if shutil.which("unshare") is None:
        return "there is no unshare (util-linux), which gives a process its own mounts"
    tried = subprocess.run(
        [*OWN, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True, text=True, timeout=60
    )
    return f"a process may not mount a small disk of its own here: {tried.stderr.strip()}" if tried.returncode else ""


def command(script: str, arguments: Sequence[object]) -> list[str]:
    """A command line that runs one of the tests' own files where it may mount."""
    path = Path(__file__).parent / script
    return [*OWN, sys.executable, str(path), *(str(argument) for argument in arguments)]


class SmallDisk:
    """The disk, mounted.

    Args:
        folder: to mount it at.
        megabytes: its size.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], check=True)
        self.folder = folder
        self._ballast = folder / "ballast"

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.folder).free

    def leave(self, size: int) -> None:
        """Fill it but for `size` bytes, rounded down to whole pages."""
        self.release()
        size = size // PAGE * PAGE
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - size)
        if self.free != size:
            raise RuntimeError(f"{self.free} bytes are free, not {size}")

    def release(self) -> None:
        """Room again."""
        self._ballast.unlink(missing_ok=True)


def files_in(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones too, by its path there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
