"""The note in a member's folder that names its MLflow run."""

from __future__ import annotations

from pathlib import Path

from ast_core.storage.atomic_files import atomic_write

NOTE = ".mlflow-run"


def write_run_note(folder: Path, run_id: str) -> None:
    """Write MLflow's id of a training to its folder; "" (the tracker did not answer) keeps an existing note."""
    if run_id:
        with atomic_write(folder / NOTE) as temporary:
            temporary.write_text(run_id, encoding="utf-8")


def read_run_note(folder: Path) -> str:
    """Read MLflow's id of the training in a folder; return "" if the training was not tracked."""
    note = folder / NOTE
    return note.read_text(encoding="utf-8") if note.is_file() else ""
