"""Run a stage as a program: errors as one sentence, exit codes, SIGTERM."""

from __future__ import annotations

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


def run_stage(stage: Callable[[], Any]) -> None:
    """Run a stage as a program: a `UserError` becomes one sentence on stderr and exit code 1, SIGTERM exit code 143.

    A bug's traceback is shown as Python does, but without passwords of URIs.
    """
    try:
        with sigterm.interrupt_on_sigterm():
            stage()
    except (UserError, ClipError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {_plain(str(error))}")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a bug of ours, or a disk that filled under Ray's or MLflow's own files
        if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {_plain(_full(error))}")
        else:
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)  # noqa: T201 - not wrapped or coloured
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. The same command again goes on from here.")
        sys.exit(sigterm.EXIT_CODE if sigterm.sigterm_received() else 130)


def _full(error: OSError) -> str:
    """A full disk that something else than our own files met: Ray's or MLflow's, or a lock's."""
    where = error.filename or "a file of this run, Ray or MLflow"
    free = {folder: shutil.disk_usage(folder).free for folder in (tempfile.gettempdir(), str(Path.cwd()))}
    known = ", ".join(f"{count} bytes are free in {folder}" for folder, count in free.items())
    return f"{where} could not be written: {error.strerror}; {known}. Free space and run the same command again."


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
