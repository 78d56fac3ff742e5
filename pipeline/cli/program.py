"""Entry point of every stage: one-sentence errors, exit codes and SIGTERM."""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ast_core.errors import ClipError, UserError
from ast_core.redaction import without_secrets
from ast_core.storage.disk_space import FULL_DISK_ERRNOS
from pipeline.cli import sigterm
from pipeline.cli.user_environment import complete_environment

complete_environment()  # at import, because the libraries that a stage imports after this module read the environment

PATH_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
"""Error numbers of paths that the user named but that this process may not or cannot use."""


def run_stage(stage: Callable[[], Any]) -> None:
    """Run a stage and exit with 1 after an error, 130 after Ctrl-C and 143 after SIGTERM.

    A `UserError`, a full disk and a path that cannot be used are printed as one sentence on stderr. Any other error is
    printed as Python's traceback, without the passwords in URIs.
    """
    try:
        with sigterm.interrupt_on_sigterm():
            _require_temporary_folder()
            stage()
    except (UserError, ClipError) as error:
        _print_error(str(error))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a bug, or a full disk met by Ray or MLflow
        if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
            _print_error(_describe_full_disk(error))
        elif isinstance(error, OSError) and error.errno in PATH_ERRNOS and error.filename is not None:
            _print_error(f"{error.filename} cannot be used: {error.strerror}. Check the path and your rights to it.")
        else:
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)  # noqa: T201 - not wrapped or coloured
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Run the same command again to resume.")
        sys.exit(sigterm.EXIT_CODE if sigterm.sigterm_received() else 130)


def _require_temporary_folder() -> None:
    """Raise UserError if no temporary folder can be written."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f"{error.strerror}. Set TMPDIR to a folder that you can write.") from None


def _describe_full_disk(error: OSError) -> str:
    """Return the sentence for a full disk that Ray, MLflow or a lock file met."""
    where = error.filename or "a file of this run, Ray or MLflow"
    free = {folder: shutil.disk_usage(folder).free for folder in (tempfile.gettempdir(), str(Path.cwd()))}
    known = ", ".join(f"{count} bytes are free in {folder}" for folder, count in free.items())
    return f"{where} could not be written: {error.strerror}; {known}. Free space and run the same command again."


def _print_error(text: str) -> None:
    escaped = without_secrets(text).replace("[", "\\[")  # rich would take brackets for markup
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {escaped}")
