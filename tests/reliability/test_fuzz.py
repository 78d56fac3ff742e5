"""Readers of untrusted bytes accept them or refuse them in one sentence; they never crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).resolve().parents[1] / "support"
CORPUS = Path(__file__).parent / "corpus"
TARGETS = 32
"""Number of readers under attack; tests/support/fuzz_targets.py lists them."""


@pytest.mark.timeout(5000)
def test_no_input_crashes_its_reader(tmp_path: Path, many, fault_seed: int, measured) -> None:
    seconds = many(5, 300) / 10
    command = [
        sys.executable,
        str(SUPPORT / "attack.py"),
        str(tmp_path),
        str(seconds),
        str(fault_seed),
        str(CORPUS),
    ]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300 + 30 * seconds)
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    crashes = [{"target": row["target"], **crash} for row in rows for crash in row["crashes"]]
    assert not crashes, json.dumps(crashes, indent=1)
    assert len(rows) == TARGETS
    for row in rows:
        assert row["accepted"] > 0, f"{row['target']} does not accept even its own output"
    measured("fuzz", inputs=sum(row["inputs"] for row in rows), targets=len(rows), crashes=0)
    measured("fuzz", **{row["target"].replace(".", " "): row["inputs"] for row in rows})
