"""R5: on a full disk the error names file, needed and free bytes; the last good file stays, no temporary file does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_disk

SHORT_LEVELS, LEVELS = 3, 8
"""Levels of the disk at which a writer is tried, in the short and in the long form."""
WRITERS = (
    "checkpoint", "part", "part of unknown length", "bundle", "Hugging Face", "scores", "tags.csv", "tags.json",
    "tags.parquet", "report", "picture", "curve", "JSON", "store", "from a store",
)  # fmt: skip
REASON = small_disk.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]


def rows_of(script: str, arguments: Sequence[object], limit_s: float) -> list[dict[str, Any]]:
    """Run a program on a small disk, and return the JSON rows that it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ran = subprocess.run(
        small_disk.command(script, arguments), check=False, capture_output=True, text=True, timeout=limit_s,
        env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-5000:]
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(400)
def test_every_writer_keeps_the_last_good_file_on_a_full_disk(tmp_path: Path, many, measured) -> None:
    levels = many(SHORT_LEVELS, LEVELS)
    *rows, race = rows_of("disk_writers.py", [tmp_path, levels, *WRITERS, "race"], 380)
    assert race["failed"]
    assert [row["writer"] for row in rows] == list(WRITERS)
    assert [row["failed"] for row in rows] == [levels] * len(WRITERS)
    before = sum(row["refused_before_writing"] for row in rows)
    measured(
        "R5",
        writers=len(rows),
        full_disks=levels * len(rows),
        refused_before_writing=before,
        races=1,
        temporary_files_left=0,
    )


@pytest.mark.long  # an export takes ten seconds of a processor
@pytest.mark.timeout(400)
def test_an_onnx_export_keeps_the_last_good_file_on_a_full_disk(tmp_path: Path, measured) -> None:
    (row,) = rows_of("disk_writers.py", [tmp_path, LEVELS, "ONNX"], 380)
    assert row["failed"] == LEVELS
    measured("R5", full_disks=LEVELS, temporary_files_left=0)


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_stages_stop_on_a_full_disk_and_resume_with_room(tmp_path: Path, many, measured) -> None:
    """Check that prepare and train resume to the same bytes, and that a full tracker does not end a training.

    The disk to which Ray spills (R21) is full in the same Ray, whose start takes longer than the rest.
    """
    rows = {row.pop("stage"): row for row in rows_of("disk_stages.py", [tmp_path, many(2, LEVELS)], 1100)}
    assert set(rows) == {"prepare", "spilling", "train", "tracker"}
    assert rows["train"]["with_a_checkpoint"]
    measured("R21", **rows.pop("spilling"), done_again=1)
    figures = {f"full_disks_of_{stage}": row["failed"] for stage, row in rows.items()}
    measured("R5", **figures, epochs_logged_after=rows["tracker"]["epochs_logged_after"])
