"""Paths for a local Ray, which cannot use every path that a machine may have.

Ray puts Unix sockets into its temporary folder, and the kernel limits a socket's path to 107 bytes. Ray also starts
workers with `bash -c "exec PYTHON ..."` without quotes: a space in the path of Python makes every worker fail, and Ray
tries for ever. It expands `$NAME` in the workers' PYTHONPATH. Symbolic links in a private folder stand for such paths,
so that the files stay where the user wants them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from ast_core.errors import UserError, require

SOCKET_BYTES = 103
"""Longest path of a Unix socket on macOS; Linux allows 107 bytes."""
LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""Path of a socket inside Ray's temporary folder, with the largest process id."""
_PLAIN = re.compile(r"[A-Za-z0-9_./+=@,-]+")
_PARSED = re.compile(r"""[^"'\\\r\n]+""")
_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - each run makes its own private folder in one of them


@dataclass(frozen=True)
class LocalPaths:
    """Paths that a local Ray can use."""

    python: str
    """Python of this environment."""
    checkout: str
    """Folder of this project's packages."""
    temporary: str
    """Folder for Ray's sessions: sockets, logs and spilled objects."""


@contextlib.contextmanager
def open_local_paths(checkout: str) -> Iterator[LocalPaths]:
    """Yield paths that Ray can use while it runs; the links among them are removed at the end.

    Args:
        checkout: folder of this project's packages, for the workers' PYTHONPATH.

    Raises:
        UserError: the temporary folder cannot be written, no folder can hold the links, or Ray's own path has a
            character that no link can hide.
    """
    package = str(Path(ray.__file__).parent)
    require(
        _PARSED.fullmatch(package) is not None,
        f"Ray cannot start workers from {package!a}: the path has a quote, a backslash or a line break. Move the "
        "virtual environment to a folder without these characters.",
    )
    temporary = _ray_folder()
    with contextlib.ExitStack() as stack:
        python = sys.executable
        if not _PLAIN.fullmatch(python):
            python = _link_python(Path(stack.enter_context(_private_folder(python))))
        if not _PLAIN.fullmatch(checkout):
            checkout = _link(checkout, stack.enter_context(_private_folder(checkout)))
        if not (_PLAIN.fullmatch(temporary) and _has_room_for_sockets(temporary)):
            temporary = _link(temporary, stack.enter_context(_private_folder(temporary)))
        yield LocalPaths(python, checkout, temporary)


def _ray_folder() -> str:
    """Return the folder that Ray would choose, made if it does not exist."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    folder = Path(os.environ.get(name) or _FOLDERS[0]).absolute() / "ray"
    advice = "Set TMPDIR to a folder that you can write."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = f"{name} is {folder.parent}, but " if name else ""
        raise UserError(f"{where}Ray's folder {folder} cannot be made: {error.strerror}. {advice}") from None
    require(os.access(folder, os.W_OK | os.X_OK), f"Ray's folder {folder} cannot be written: wrong owner. {advice}")
    return str(folder)


def _has_room_for_sockets(folder: str) -> bool:
    return len(os.fsencode(folder)) + len(LONGEST_SOCKET) <= SOCKET_BYTES


@contextlib.contextmanager
def _private_folder(path: str) -> Iterator[str]:
    """Yield a new folder with a short plain name for a link to `path`; remove it with its links at the end."""
    for parent in (tempfile.gettempdir(), *_FOLDERS):
        short = _has_room_for_sockets(f"{parent}/ast-ray-12345678/ray")
        if _PLAIN.fullmatch(parent) and short and os.access(parent, os.W_OK | os.X_OK):
            folder = tempfile.mkdtemp(prefix="ast-ray-", dir=parent)
            break
    else:
        raise UserError(
            f"Ray cannot use {path}: it is too long or has characters other than letters, digits and _./+=@,- and none "
            f"of {', '.join(_FOLDERS)} can be written for a link to it. Set TMPDIR to a short path, or move the "
            "virtual environment."
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # removes the links, not what they point to


def _link(path: str, folder: str) -> str:
    """Link a path in a folder, and return the link."""
    link = Path(folder) / "ray"
    link.symlink_to(path)
    return str(link)


def _link_python(folder: Path) -> str:
    """Link this environment in a folder, and return its Python there.

    Python looks for its packages from the path by which it was started, so the link must be to the whole environment.
    """
    python, prefix = Path(sys.executable), Path(sys.prefix)
    link = folder / "python"
    if python.is_relative_to(prefix):
        link.symlink_to(prefix)
        return str(link / python.relative_to(prefix))
    link.symlink_to(python.parent)
    return str(link / python.name)
