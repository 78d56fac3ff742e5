"""The main job on recordings made by code, a folder per class with broken files among them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from listening import watch_sockets

from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import RunSettings
from pipeline.run import run

PITCHES_HZ = {"deep": 200.0, "middle": 800.0, "high": 3200.0}
RECIPE = """
[data]
layout = "folders"
[prepare]
clips_per_part = 8
max_reject_share = 0.2
[front_end]
target_frames = 48
[model]
backbone = "ast_micro"
patch_freq = 128
patch_time = 8
freq_stride = 128
time_stride = 8
init = "scratch"
[augment]
mixup_rate = 0.3
freq_mask_bins = 8
time_mask_frames = 8
[optim]
epochs = 4
batch_size = 6
learning_rate = 1e-3
warmup_steps = 4
loss = "bce"
sampler = "balanced"
weights = "averaged"
average_first_epoch = 3
[ensemble]
seeds = [0, 1]
"""


@dataclass(frozen=True)
class MainJob:
    """A main job that ran to its end."""

    folder: Path
    """Folder of the recordings, the recipe, the run and the tracking store."""
    tracking: str
    """Address of the tracking store."""
    shown: str
    """Output of the job."""
    sockets: set[tuple[int, str, str]]
    """Process id, command line and address of each socket on which one of its processes listened."""


def write_recordings(folder: Path, save_tone: Callable[..., Path]) -> None:
    """Write the recordings and the recipe."""
    for label, pitch_hz in PITCHES_HZ.items():
        for number in range(8):
            split = "train" if number < 5 else "test"
            save_tone(folder / "clips" / split / label / f"{number}.wav", pitch_hz=pitch_hz + 9 * number, seed=number)
    (folder / "clips" / "train" / "deep" / "empty.wav").touch()
    (folder / "clips" / "test" / "high" / "text.wav").write_text("not audio")
    (folder / "mine.toml").write_text(RECIPE)


def run_main_job(folder: Path) -> MainJob:
    """Run the job as a user does it, in this process."""
    uri, shown = f"sqlite:///{folder / 'mlflow.db'}", io.StringIO()
    flags = ["--recipe", str(folder / "mine.toml"), "--run-dir", str(folder / "run"), "--tracking", uri]
    flags += ["--data.source", str(folder / "clips"), "--workers", "2"]
    with watch_sockets() as sockets, contextlib.redirect_stdout(shown):
        run(parse_settings(RunSettings, "", flags))
    return MainJob(folder, uri, shown.getvalue(), sockets)
