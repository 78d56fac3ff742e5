"""Which tracked run a member's folder came from."""

from __future__ import annotations

from pathlib import Path

from ast_core.storage.atomic_files import atomic_write

NOTE = ".mlflow-run"


def write_run_note(folder: Path, run_id: str) -> None:
    """Keep MLflow's id of a training in its folder; "" (the tracker was away) leaves what is there."""
    if run_id:
        with atomic_write(folder / NOTE) as temporary:
            temporary.write_text(run_id, encoding="utf-8")


def read_run_note(folder: Path) -> str:
    """MLflow's id of the training in a folder; "" if it was not tracked."""
    note = folder / NOTE
    return note.read_text(encoding="utf-8") if note.is_file() else ""
