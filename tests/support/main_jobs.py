"""The main job as the notebook of `examples/` runs it, on recordings made by code with broken files among them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from listening import watch_sockets

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = "own_recordings.ipynb"
PITCHES_HZ = {"deep": 200.0, "middle": 800.0, "high": 3200.0}
CLIPS = {"train": 8, "validation": 3, "test": 3}
"""Recordings of each class, by split."""
BREAK = """
(recordings / "train" / "deep" / "empty.wav").touch()
(recordings / "train" / "high" / "text.wav").write_text("not audio")
"""
"""Cell that the tests add to the notebook, after its check of the recordings, which refuses broken files."""
SHORT = ("--optim.warmup-steps 10", "--optim.warmup-steps 4 --optim.batch-size 6 --workers 1")
"""Flags of the notebook's first cell, and those in their place: few recordings need small batches and one worker."""


@dataclass(frozen=True)
class MainJob:
    """A main job that ran to its end."""

    folder: Path
    """Copy of `examples/`, with the recordings and the run in it."""
    cells: dict[str, str]
    """Output of each cell of the notebook, by id."""
    sockets: set[tuple[int, str, str]]
    """Process id, command line and address of each socket on which one of its processes listened."""

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.folder / "work" / "own_recordings"

    @property
    def tracking(self) -> str:
        """Address of the tracking store."""
        return f"sqlite:///{self.folder / 'work' / 'mlflow.db'}"


def code_of(path: Path) -> list[nbformat.NotebookNode]:
    """Return the code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def write_recordings(folder: Path, save_tone: Callable[..., Path]) -> None:
    """Write recordings of one second, a folder for each split and class."""
    for label, pitch_hz in PITCHES_HZ.items():
        for split, count in CLIPS.items():
            for number in range(count):
                path = folder / split / label / f"{number}.wav"
                save_tone(path, seconds=1.0, pitch_hz=pitch_hz + 9 * number, seed=number)


def _change_notebook(path: Path) -> None:
    """Add the cell that breaks recordings, and change the flags."""
    notebook = nbformat.read(path, as_version=4)
    place = [cell.id for cell in notebook.cells].index("check")
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(BREAK, id="break"))
    settings = next(cell for cell in notebook.cells if cell.id == "settings")
    assert SHORT[0] in settings.source
    settings.source = settings.source.replace(*SHORT)
    nbformat.write(notebook, path)


def run_main_job(folder: Path, save_tone: Callable[..., Path], new_store: Callable[[Path], str]) -> MainJob:
    """Run the notebook with the command of `examples/README.md` and a Ray of its own, as a user does.

    The temporary folder has a long path, so that Ray works below a short link to it.
    """
    made = shutil.ignore_patterns("work", "*recordings", "*_done.ipynb")  # by the user, who ran the notebook before
    examples = shutil.copytree(EXAMPLES, folder / "examples", ignore=made)
    write_recordings(examples / "recordings", save_tone)
    _change_notebook(examples / NOTEBOOK)
    new_store(examples / "work")
    temporary = folder / ("x" * 100)  # too long for Ray's sockets
    temporary.mkdir()
    left_out = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_TMPDIR"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"TMPDIR": str(temporary)}
    environment |= dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR"), str(folder / "jupyter"))
    command = [Path(sys.executable).with_name("jupyter"), "execute", NOTEBOOK, "--output=done.ipynb"]
    with tempfile.TemporaryDirectory(prefix="jupyter-") as runtime, watch_sockets() as sockets:
        environment |= {"JUPYTER_RUNTIME_DIR": runtime}
        done = subprocess.run(command, cwd=examples, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(temporary.glob("ray/session_2*"))
    cells = {cell.id: "".join(map(_text_of, cell.outputs)) for cell in code_of(examples / "done.ipynb")}
    return MainJob(examples, cells, sockets)


def _text_of(output: nbformat.NotebookNode) -> str:
    """Return what a cell printed; in a notebook, rich shows its tables and lines as data."""
    text: str = output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
    return text
