"""Prepare, train and log to a tracker on a full disk, and prepare while Ray's store and its spill disk are full.

python tests/support/disk_stages.py FOLDER LEVELS STAGE...

It is a program, because only it sees those disks; all stages use one Ray. It prints one line of JSON for each stage.
With two levels, only the stage `spilling`, which fills Ray's store, has Ray's workers.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import soundfile
from disk_writers import TELLS
from forked_trainings import preload
from launches import training_flags
from mlflow import MlflowClient
from prepared import BINS, FRAMES, write_shards
from small_disk import PAGE, SmallDisk, files_in
from trainings import fit_without_ray
from without_ray import stages_without_ray

from ast_core.config import DataConfig, FrontEndConfig, PrepareConfig
from ast_core.errors import NoRoomError
from ast_core.storage.atomic_files import sha256_of
from ast_core.weights import checkpoint
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import PrepareSettings, TrainSettings
from pipeline.prepare import prepare
from pipeline.ray_runtime import internals
from pipeline.run_folder import folder_lock
from pipeline.tracking import mlflow_store, runs
from pipeline.train import train

MEGABYTES, EPOCHS, CLIPS = 64, 2, 24
STORE_BYTES, MOST = 100_000_000, 100
OBJECT_BYTES = (10_000_000, 1_000_000, 150_000)
"""Sizes of the objects that fill the store; smaller ones are not in it."""


def refused(stage: Callable[[], Any]) -> str:
    """Run a stage that has no room, as a program, and return its error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as caught:
        run_stage(stage)
    assert caught.value.code == 1
    sentence = said.getvalue()[said.getvalue().rindex("Error: ") :]
    assert TELLS.search(sentence) or "bytes are free" in sentence, sentence
    return sentence.strip()


def size_of(folder: Path) -> int:
    """Return the bytes on disk of all files."""
    return sum(math.ceil(path.stat().st_size / PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def recordings(folder: Path) -> Path:
    folder.mkdir()
    lines = ["path,labels,split"]
    for n in range(CLIPS):
        samples_N = 0.3 * np.sin(2 * np.pi * (300 + 50 * n) * np.arange(6400) / 16_000)
        soundfile.write(folder / f"{n}.wav", samples_N, 16_000, subtype="PCM_16")
        lines.append(f"{n}.wav,{'low' if n < CLIPS // 2 else 'high'},{'test' if n % 4 == 0 else 'train'}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def prepare_on(source: Path, root: Path, shards: Path) -> None:
    """Write the shards of the recordings."""
    settings = PrepareSettings(
        run_dir=root / "run", shards=shards, workers=1, prepare=PrepareConfig(clips_per_part=3),
        data=DataConfig(source=str(source), layout="manifest"),
        front_end=FrontEndConfig(target_frames=FRAMES, num_mel_bins=BINS),
    )  # fmt: skip
    prepare(settings)


def try_prepare(disk: SmallDisk, root: Path, levels: int, ranks: int) -> dict[str, Any]:
    with contextlib.nullcontext() if ranks > 1 else stages_without_ray():
        return _try_prepare(disk, root, levels)


def _try_prepare(disk: SmallDisk, root: Path, levels: int) -> dict[str, Any]:
    source = recordings(root / "recordings")
    prepare_on(source, root, root / "whole")
    whole, needs, sentence = shards_in(root / "whole"), size_of(root / "whole"), ""
    shards = disk.folder / "shards"
    for level in range(levels):
        disk.leave(max(0, needs * level // levels - size_of(shards)))
        sentence = refused(lambda: prepare_on(source, root, shards))
        there = shards_in(shards)
        # Existing files are final; a part whose marker had no room has no marker.
        assert {name: whole[name] for name in there} == there, sentence
    disk.release()
    prepare_on(source, root, shards)
    assert shards_in(shards) == whole
    return {"stage": "prepare", "failed": levels, "sentence": sentence}


def try_spilling(disk: SmallDisk, root: Path) -> dict[str, Any]:
    """Prepare while Ray's store and its spill disk are full, after `try_prepare`, then with room."""
    source, shards = root / "recordings" / "list.csv", root / "spilled"
    held = fill_store()
    row = {"held": len(held), "spill_disk_free_mb": disk.free / 1e6}
    said = ""
    try:
        prepare_on(source, root, shards)  # its own objects are small, so it may have room
    except NoRoomError as error:
        said = str(error)
    assert str(disk.folder) in said or not said
    held.clear()
    prepare_on(source, root, shards)
    assert shards_in(shards) == shards_in(root / "whole")
    return {"stage": "spilling", **row, "named": int(bool(said))}


def fill_store() -> list[Any]:
    """Put objects until neither Ray's store nor its disk has room for another."""
    held: list[Any] = []
    for size in OBJECT_BYTES:
        with contextlib.suppress(ray.exceptions.OutOfDiskError):
            for _ in range(MOST):
                held += [ray.put(bytes(size))]  # kept also if the next one has no room
            raise RuntimeError(f"Ray took {MOST} objects of {size} bytes: its disk is not full.")
    return held


def shards_in(folder: Path) -> dict[str, str]:
    """Return the hashes of all files except those of the lock."""
    found = files_in(folder) if folder.is_dir() else {}
    return {name: sha256 for name, sha256 in found.items() if name not in {folder_lock.LOCK, folder_lock.HOLDER}}


def weights_of(run: Path) -> list[str]:
    epochs = checkpoint.epoch_folders(run / "members" / "seed-0" / "epochs").values()
    return [sha256_of(epoch / "model.safetensors") for epoch in epochs]


def try_tracker(disk: SmallDisk, root: Path, ranks: int) -> dict[str, Any]:
    """Train while the tracker cannot write, and check that the epochs are logged once it has room.

    Only the driver writes to the tracker, so the ranks need no Ray.
    """
    uri = f"sqlite:///{disk.folder / 'mlflow.db'}"
    mlflow_store.open_store(uri)
    with runs.start_run("test", "before", {}, {}):
        pass
    disk.leave(0)
    flags = [*training_flags(root, "whole", EPOCHS), "--tracking", uri]
    settings = parse_settings(TrainSettings, "", flags)
    fit_without_ray(settings, ranks)
    member = train(settings)
    assert len(weights_of(root / "whole")) == EPOCHS
    disk.release()
    train(settings)
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("test")
    assert found is not None
    names = {run.info.run_name: run.info.run_id for run in client.search_runs([found.experiment_id])}
    logged = client.get_metric_history(names[f"test-{member.name}"], "train_loss")
    assert sorted(row.step for row in logged) == list(range(1, EPOCHS + 1))
    return {"stage": "tracker", "failed": 1, "epochs_logged_after": len(logged)}


def try_train(disk: SmallDisk, root: Path, levels: int, ranks: int) -> dict[str, Any]:
    """Train on a full disk, after `try_tracker`. Eight pages have room for small files only, Ray's included."""
    member = disk.folder / "run" / "members" / "seed-0"
    flags = [*training_flags(root, "whole", EPOCHS), "--run-dir", str(disk.folder / "run")]
    needs, resumed, sentence = size_of(root / "whole"), 0, ""
    # More than half of what a complete run needs: with less there is no room for a first checkpoint.
    shares = [needs * (levels + n) // (2 * levels) for n in range(1, levels)]
    small = [0, 8 * PAGE][: levels - 2]
    for level in [*small, *shares]:
        disk.leave(level if level in small else max(0, level - size_of(disk.folder / "run")))
        with contextlib.nullcontext() if ranks > 1 else stages_without_ray():
            sentence = refused(lambda: train(parse_settings(TrainSettings, "", [*flags, "--workers", str(ranks)])))
        newest, passed_over = checkpoint.newest(member / "checkpoints")
        assert not passed_over
        resumed += newest is not None
        tensors = list(disk.folder.rglob("*.safetensors*"))
        whole = [path for path in tensors if (path.parent / checkpoint.MARKER).is_file()]
        leftovers = [path for path in tensors if path.suffix != ".safetensors" or path not in whole]
        assert not leftovers, leftovers
    disk.release()
    fit_without_ray(parse_settings(TrainSettings, "", flags), ranks)  # what is resumed is on disk
    assert len(weights_of(disk.folder / "run")) == EPOCHS
    assert weights_of(disk.folder / "run") == weights_of(root / "whole")
    return {"stage": "train", "failed": len(small) + len(shares), "with_a_checkpoint": resumed, "sentence": sentence}


def main() -> None:
    """Run the named stages, or all of them."""
    root, levels = Path(sys.argv[1]), int(sys.argv[2])
    ranks = 1 if levels <= 2 else 2
    write_shards(root / "shards", {"train": 42, "test": 21})
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server of forks has no other search path
    preload("__main__")  # else each rank would import this program by itself
    disk, spill_disk = SmallDisk(root / "disk", MEGABYTES), SmallDisk(root / "spill", MEGABYTES)
    stages = {
        "prepare": lambda: try_prepare(disk, root, levels, ranks),
        "spilling": lambda: try_spilling(spill_disk, root),
        "tracker": lambda: try_tracker(disk, root, ranks),
        "train": lambda: try_train(disk, root, levels, ranks),
    }
    with internals.bind_to_loopback(), internals.without_idle_processes():
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=STORE_BYTES,
            object_spilling_directory=str(spill_disk.folder), logging_level="ERROR",
        )  # fmt: skip
    for name in sys.argv[3:] or stages:
        print(json.dumps(stages[name]()), flush=True)  # noqa: T201
    ray.shutdown()


if __name__ == "__main__":
    main()
