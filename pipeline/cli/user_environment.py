"""Environment variables for a user without a name or without a usable home, as with `docker --user` and on OpenShift.

PyTorch and MLflow ask for the user's name, and PyTorch fails if the user id has none. Matplotlib, hubs of weights and
Ray look for a home. Import this module before them.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import stat
import tempfile
from pathlib import Path


def complete_environment() -> None:
    """Set USER, HOME and the folders of caches where the user's own cannot be used; change nothing else.

    A home that can be read stays, because it may have the user's credentials. Worker processes inherit the variables.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        os.environ["USER"] = f"uid-{os.getuid()}"
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where the user has none
    if _is_usable(home, os.W_OK | os.X_OK):
        return
    with contextlib.suppress(OSError):  # the program reports a machine without a temporary folder
        folder = _make_private_folder()
        if not _is_usable(home, os.R_OK | os.X_OK):
            os.environ["HOME"] = str(folder)
        elif not _is_usable(str(Path(home) / ".cache"), os.W_OK | os.X_OK):
            os.environ.setdefault("XDG_CACHE_HOME", str(folder / ".cache"))
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


def _is_usable(folder: str, access: int) -> bool:
    return os.path.isabs(folder) and os.path.isdir(folder) and os.access(folder, access)  # noqa: PTH112, PTH117


def _make_private_folder() -> Path:
    """Return a folder of this user that later processes find again; a new one if another user holds its name."""
    folder = Path(tempfile.gettempdir()) / f"ast-pipeline-{os.getuid()}"
    with contextlib.suppress(FileExistsError):  # a file or a link of that name may exist, too
        folder.mkdir(mode=stat.S_IRWXU)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if private and found.st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
