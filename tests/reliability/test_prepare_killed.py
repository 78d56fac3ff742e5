"""R9: prepare killed at any instant, with its workers or without them, is finished by the same command again.

The short form prepares a Parquet file, the long form loose files.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import parquet_recordings
import psutil
import pytest
import ray
from killed_prepares import part_makers, started
from listed_audio import files, prepare_settings, require_balance, rows, write_clips, write_list, written

from ast_core.dataset.manifest import load_manifest
from ast_core.shards.index import INDEX, ShardIndex
from pipeline.cli.stages import PrepareSettings
from pipeline.preparation.part_writer import write_shard_part
from pipeline.prepare import plan, prepare

CLIPS, PER_PART = 240, 12


def kill_workers() -> int:
    """Kill all that make a part; how many that were."""
    workers = part_makers()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    return len(workers)


def settle() -> None:
    """Wait until Ray has ended the workers of a driver that was killed: until then they commit what they made."""
    deadline = time.monotonic() + 60
    while part_makers():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def finished(settings: PrepareSettings) -> dict[str, tuple[int, int]]:
    """Parts that have their marker: nothing may write them again."""
    return {
        name: seen for name, seen in written(settings.shards).items() if (settings.shards / f"{name}.json").is_file()
    }


def await_parts(settings: PrepareSettings, count: int, driver: BaseProcess) -> None:
    """Wait until that many parts are there, or their driver has ended."""
    while driver.exitcode is None and len(finished(settings)) < count:
        time.sleep(0.01)


def write_source(folder: Path, packed: bool) -> tuple[Path, str]:
    """Write the recordings, and return the data set's path and layout."""
    names = write_clips(folder, CLIPS)
    listing = write_list(folder / "list.csv", names)
    if not packed:
        return listing, "manifest"
    rows = list(csv.DictReader(listing.read_text().splitlines()))
    columns = {name: [row[name] for row in rows] for name in ("clip_id", "labels", "split")}
    columns["labels"] = [[label] for label in columns["labels"]]
    audio = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    parquet_recordings.write(folder / "packed" / "all.parquet", columns | {"audio": audio}, row_group_size=PER_PART)
    return folder / "packed", "parquet"


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(900)
def test_killed_at_random_instants(
    tmp_path: Path, many: Callable[[int, int], int], fault_seed: int, measured: Callable[..., None]
) -> None:
    rng, kills = random.Random(fault_seed), many(1, 100)
    source, layout = write_source(tmp_path / "data", packed=many(True, False))
    whole = prepare_settings(source, tmp_path / "whole" / "shards", PER_PART)
    whole = dataclasses.replace(whole, data=dataclasses.replace(whole.data, layout=layout))
    for part in plan(whole, load_manifest(source, layout), source):
        write_shard_part(part)
    prepare(whole)
    address = ray.get_runtime_context().gcs_address
    parts = len(finished(whole))
    expected, done, killed_workers, inside, round_number = files(whole.shards), 0, 0, 0, 0
    while done < kills:
        round_number += 1
        shards = tmp_path / f"killed-{round_number}" / "shards"
        settings = dataclasses.replace(whole, shards=shards, address=address)
        before: dict[str, tuple[int, int]] = {}
        for _ in range(many(1, 4)):  # kills of one data set's run, then it ends
            driver = started(settings, tmp_path / "log")
            await_parts(settings, rng.randint(max(1, len(before)), parts - 1), driver)
            driver.join(rng.uniform(0, 0.3))
            if driver.exitcode is None:
                driver.kill()
                killed_workers += kill_workers() if rng.random() < 0.5 else 0
                driver.join()
                assert driver.exitcode == -signal.SIGKILL
                done += 1
            settle()
            kept = finished(settings)
            inside += 0 < len(kept) < parts
            assert before.items() <= kept.items()  # finished ones are not done again
            before = kept
        settings.shards.mkdir(parents=True, exist_ok=True)
        (settings.shards / f".{INDEX}.killed").touch()  # few kills are inside that write
        prepare(settings)
        assert before.items() <= written(settings.shards).items()
        assert files(settings.shards) == expected  # no temporary file, no part lost, no part twice
        require_balance(ShardIndex.load(settings.shards), settings.shards, CLIPS)
        assert len(rows(settings.shards)) == CLIPS
    measured("R9", kills=done, with_some_parts_done=inside, workers_killed_too=killed_workers)
