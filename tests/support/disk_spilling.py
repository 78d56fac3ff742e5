"""Prepare and train while Ray's object store and its spill disk are full. It is a program: only it sees that disk.

python tests/support/disk_spilling.py FOLDER CLIPS STAGE...

It prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import ray
from disk_stages import MEGABYTES, STORE_BYTES, fill_store
from launches import training_flags
from listed_audio import prepare_settings, require_balance, write_clips, write_list
from prepared import write_shards
from small_disk import SmallDisk

from ast_core.errors import NoRoomError
from ast_core.shards.index import ShardIndex
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.prepare import prepare
from pipeline.train import train


def main() -> None:
    """Prepare and train while both are full, then with room."""
    root, clips = Path(sys.argv[1]), int(sys.argv[2])
    listing = write_list(root / "data" / "list.csv", write_clips(root / "data", clips))
    disk = SmallDisk(root / "disk", MEGABYTES)
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=STORE_BYTES,
        object_spilling_directory=str(disk.folder), logging_level="ERROR",
    )  # fmt: skip
    settings = prepare_settings(listing, root / "shards", 12)
    write_shards(root / "run" / "shards", {"train": 42, "test": 21})
    stages = {
        "prepare": lambda: prepare(settings),
        "train": lambda: train(parse_settings(TrainSettings, "", training_flags(root / "run", "run", 2))),
    }
    stages = {name: stages[name] for name in sys.argv[3:]}
    held = fill_store()
    row = {"held": len(held), "spill_disk_free_mb": disk.free / 1e6}
    said = {name: error_of(stage) for name, stage in stages.items()}
    assert all(str(disk.folder) in sentence for sentence in said.values() if sentence), said
    held.clear()
    again = {name: error_of(stage) for name, stage in stages.items()}
    assert not any(again.values()), again
    require_balance(ShardIndex.load(settings.shards), settings.shards, clips)
    print(json.dumps(row | {"named": sum(map(bool, said.values())), "done_again": len(again)}), flush=True)  # noqa: T201


def error_of(stage: Callable[[], object]) -> str:
    """Run a stage, and return the error that it ended with; "" if it succeeded."""
    try:
        stage()
    except NoRoomError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
