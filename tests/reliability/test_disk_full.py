"""R5: a disk is full. Who wrote is told which file, needed and free bytes; the last good one stays, no stump does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_disk

LEVELS = 8
WRITERS = (
    "checkpoint", "part", "part of unknown length", "bundle", "Hugging Face", "scores", "tags.csv", "tags.json",
    "tags.parquet", "report", "picture", "curve", "JSON", "store", "from a store",
)  # fmt: skip
REASON = small_disk.why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


def told(script: str, arguments: Sequence[object], limit_s: float) -> list[dict[str, Any]]:
    """What a program on a small disk prints, a row a line."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ran = subprocess.run(
        small_disk.command(script, arguments), check=False, capture_output=True, text=True, timeout=limit_s,
        env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-5000:]
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(400)
def test_every_writer_at_eight_levels(tmp_path: Path, measured) -> None:
    *rows, race = told("disk_writers.py", [tmp_path, LEVELS, *WRITERS, "race"], 380)
    assert race["failed"]
    assert [row["writer"] for row in rows] == list(WRITERS)
    assert [row["failed"] for row in rows] == [LEVELS] * len(WRITERS)
    before = sum(row["told_before"] for row in rows)
    measured("R5", writers=len(rows), full_disks=LEVELS * len(rows), refused_before_writing=before, races=1, stumps=0)


@pytest.mark.timeout(400)
def test_an_export_to_onnx(tmp_path: Path, many, measured) -> None:
    levels = many(0, LEVELS)
    if not levels:
        pytest.skip("an export takes ten seconds of a processor: in the long form")
    (row,) = told("disk_writers.py", [tmp_path, levels, "ONNX"], 380)
    assert row["failed"] == levels
    measured("R5", full_disks=levels, stumps=0)


@pytest.mark.timeout(1200)
def test_whole_stages_stop_and_go_on(tmp_path: Path, many, measured) -> None:
    """Prepare and train say it and go on to the same bytes; a full tracker ends no training, lacks nothing later."""
    rows = {row["stage"]: row for row in told("disk_stages.py", [tmp_path, many(2, LEVELS)], 1100)}
    assert set(rows) == {"prepare", "train", "tracker"}
    assert rows["train"]["with_a_checkpoint"]
    figures = {f"full_disks_of_{stage}": row["failed"] for stage, row in rows.items()}
    measured("R5", **figures, epochs_logged_after=rows["tracker"]["epochs_logged_after"])
