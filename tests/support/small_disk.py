"""A disk of a few megabytes for one process: a tmpfs in its own mount namespace, with a file that fills it."""

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
    """Return the reason why this machine cannot mount such a disk; "" if it can."""
    if shutil.which("unshare") is None:
        return "there is no unshare (util-linux), which gives a process its own mounts"
    tried = subprocess.run(
        [*OWN, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True, text=True, timeout=60
    )
    return f"a process may not mount a small disk of its own here: {tried.stderr.strip()}" if tried.returncode else ""


def command(script: str, arguments: Sequence[object]) -> list[str]:
    """Return the command line that runs a file of the tests where it may mount a disk."""
    path = Path(__file__).parent / script
    return [*OWN, sys.executable, str(path), *(str(argument) for argument in arguments)]


class SmallDisk:
    """A mounted small disk.

    Args:
        folder: mount point.
        megabytes: size of the disk.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], check=True)
        self.folder = folder
        self._ballast = folder / "ballast"

    @property
    def free(self) -> int:
        """Free bytes."""
        return shutil.disk_usage(self.folder).free

    def leave(self, size: int) -> None:
        """Fill the disk except `size` bytes, rounded down to a multiple of the page size."""
        self.release()
        size = size // PAGE * PAGE
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - size)
        if self.free != size:
            raise RuntimeError(f"{self.free} bytes are free, not {size}")

    def release(self) -> None:
        """Remove the file that fills the disk."""
        self._ballast.unlink(missing_ok=True)


def files_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, hidden ones too, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
