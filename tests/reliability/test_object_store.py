"""R21: stages with a full object store of 100 MB: while it spills, and when the disk that it spills to is full.

`test_disk_full` has the short form.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import small_disk
from clusters import Cluster
from listed_audio import files, flags, prepare_settings, require_balance, write_clips, write_list

from ast_core.shards.index import ShardIndex

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 120
HOLDER = """
import numpy as np, ray, sys
ray.init(address=sys.argv[1], logging_level="ERROR")
make = ray.remote(num_cpus=1)(lambda seed: np.random.default_rng(seed).bytes(10_000_000))
held = [make.remote(seed) for seed in range(30)]
ray.wait(held, num_returns=len(held), fetch_local=False)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(400)
def test_prepare_with_a_full_object_store(tmp_path: Path, ray_cluster: Cluster, measured: Callable[..., None]) -> None:
    listing = write_list(tmp_path / "data" / "list.csv", write_clips(tmp_path / "data", CLIPS))
    environment = ray_cluster.environment()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, ray_cluster.address],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        spilled = spilled_bytes(ray_cluster)
        assert spilled > 100e6, "the store was not full"
        found = []
        for name in ("full", "free"):
            settings = prepare_settings(listing, tmp_path / name / "shards", 12)
            command = [sys.executable, "pipeline/prepare.py", *flags(settings), "--address", ray_cluster.address]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            require_balance(ShardIndex.load(settings.shards), settings.shards, CLIPS)
            found.append(files(settings.shards))
            holder.kill()  # Ray frees what it held
            holder.wait()
    finally:
        holder.kill()
    assert found[0] == found[1]
    measured("R21", store_mb=100, spilled_mb=spilled / 1e6, clips=CLIPS)


REASON = small_disk.why_not()


@pytest.mark.ray
@pytest.mark.skipif(bool(REASON), reason=REASON)
@pytest.mark.timeout(300)
def test_a_full_disk_for_spilling_is_named(tmp_path: Path, measured: Callable[..., None]) -> None:
    stages = ("prepare", "train")
    command = small_disk.command("disk_spilling.py", [tmp_path, CLIPS, *stages])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))  # Ray speaks, too
    assert row["named"] >= 1
    assert row["done_again"] == len(stages)
    measured("R21", **row, clips=CLIPS)


def spilled_bytes(cluster: Cluster) -> float:
    """In files on the disk, of all nodes."""
    folders = cluster.folder.glob("session_2*/ray_spilled_objects*")
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
