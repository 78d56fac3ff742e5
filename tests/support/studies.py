"""A study of two variants and three trials, each of a few seconds on one worker."""

from __future__ import annotations

from pathlib import Path

from prepared import BINS, FRAMES, write_shards

from pipeline.cli.command_line import parse_settings
from tune.search import SearchSettings, search
from tune.study_report import Table

STUDY = """
title = "Time strides"
[variants.wide]
model.time_stride = 8
[variants.fine]
model.time_stride = 4
repeats = 1
"""


def new_study(folder: Path) -> Path:
    """Write shards and the study's file, and return the folder."""
    write_shards(folder / "shards", {"train": 42, "test": 21})
    (folder / "strides.toml").write_text(STUDY)
    return folder


def study_flags(folder: Path, *more: str) -> list[str]:
    """Return flags for `search.py`."""
    text = f"""
    --recipe esc50_small --run-dir {folder / "run"} --shards {folder / "shards"} --workers 1
    --tracking sqlite:///{folder / "mlflow.db"} --experiment test --data.train-splits train --data.test-split test
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    --model.patch-freq {BINS} --model.freq-stride {BINS} --study {folder / "strides.toml"} --repeats 2
    --augment.freq-mask-bins 4 --augment.time-mask-frames 8
    --optim.epochs 3 --optim.batch-size 6 --optim.average-first-epoch 2
    """
    return [*text.split(), "--winner", str(folder / "best.toml"), *more]


def run_search(folder: Path, *more: str) -> Table:
    """Run the search in this process and return the table."""
    table, _ = search(parse_settings(SearchSettings, "", study_flags(folder, *more)))
    return table


def trials_folder(folder: Path) -> Path:
    """Return the folder of the trials, which are VARIANT/seed-N in it."""
    return folder / "run" / "studies" / "strides" / "trials"
