"""Try every writer of files on a disk that is full at several levels. It is a program: only it sees that disk.

python tests/support/disk_writers.py FOLDER LEVELS WRITER...

Prints a line of JSON a writer: how many of its writes failed, and the sentence of the last one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from prepared import BINS, FRAMES, FRONT_END, LABELS, write_shards
from small_disk import PAGE, SmallDisk, files_in

from ast_core.config import ModelConfig
from ast_core.errors import NoRoomError, UserError
from ast_core.evaluation.prediction_table import Prediction, write_predictions
from ast_core.evaluation.stored_scores import write_scores
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.shards.sparse_labels import SparseLabels
from ast_core.shards.writer import Row, write_part
from ast_core.storage.atomic_files import atomic_write, download_file
from ast_core.storage.json_files import write_json
from ast_core.storage.object_store import ObjectStore, store_of
from ast_core.storage.tensor_files import write_tensors
from ast_core.training.state import Progress, _write_history
from ast_core.weights import checkpoint
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.huggingface import HuggingFaceModel, write_folder

MEGABYTES = 64
TELLS = re.compile(r"it needs (more than )?(\d+) bytes, (\d+) are free")
MODEL = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch")
Writer = Callable[[Path, int], None]


def weights(version: int, model: ModelConfig = MODEL) -> dict[str, torch.Tensor]:
    torch.manual_seed(version)
    return AST(model, BINS, FRAMES, len(LABELS)).state_dict()


def save_checkpoint(folder: Path, version: int) -> None:
    tables = {"model": weights(version), "optimizer": weights(version + 10)}
    checkpoint.save(folder / f"step-{version}", tables, {"step": version})


def save_part(folder: Path, version: int, at_most: int = 0) -> None:
    rng = np.random.default_rng(version)
    rows = (Row(f"{n}", (0,), FRAMES, rng.normal(size=(FRAMES, BINS)).astype("<f2")) for n in range(100))
    write_part(folder / "part-00000.parquet", rows, {}, FRAMES, BINS, at_most)


def save_bundle(folder: Path, version: int) -> None:
    identity = {"model": to_dict(MODEL), "front_end": to_dict(FRONT_END), "labels": list(LABELS), "loss": "bce"}
    members = [(f"seed-{n}", weights(version + n), {**identity, "mean": -6.0, "std": 4.0}) for n in range(2)]
    write_bundle(folder / "bundle", members, True)


def save_huggingface(folder: Path, version: int) -> None:
    square = ModelConfig(backbone="deit_tiny_distilled_patch16_224", freq_stride=16, time_stride=16, init="scratch")
    source = HuggingFaceModel(square, FRONT_END, -6.0, 4.0, LABELS, True, weights(version, square))
    write_folder(folder / "huggingface", source)


def save_onnx(folder: Path, version: int) -> None:
    from ast_core.weights.onnx_export import export_onnx  # noqa: PLC0415, seconds

    if not (shared(folder) / f"onnx-{version}").is_dir():
        save_bundle(shared(folder) / f"onnx-{version}", version)
    export_onnx(Bundle.load(shared(folder) / f"onnx-{version}" / "bundle"), folder / "model.onnx")


def save_scores(folder: Path, version: int) -> None:
    clips = 5000
    reader: Any = SimpleNamespace(
        clip_ids=[f"clip-{n}" for n in range(clips)], labels=SparseLabels.from_dense(np.ones((clips, 3)))
    )
    write_scores(folder / "scores.parquet", {"of": str(version)}, np.full((clips, 3), version, np.float32), reader)


def save_tags(folder: Path, version: int, ending: str) -> None:
    rng = np.random.default_rng(version)
    rows = [
        Prediction(f"/recordings/{n}.wav", 0.0, 1.0, "", (LABELS[0],), rng.random(len(LABELS), np.float32))
        for n in range(3000)
    ]
    write_predictions(folder / f"tags{ending}", rows, LABELS)


def save_report(folder: Path, version: int) -> None:
    from pipeline.cli.stages import ReportSettings  # noqa: PLC0415
    from pipeline.report import report  # noqa: PLC0415

    shards = shared(folder) / "shards"
    if not shards.is_dir():
        write_shards(shards, {"train": 9, "test": 9})
    tracker = f"sqlite:///{shared(folder) / 'mlflow.db'}"
    # The page is as long as the run's name, so that it has eight levels.
    title = f"{version}" * 40_000
    report(ReportSettings(run_dir=folder, shards=shards, tracking=tracker, experiment=title))


def save_picture(folder: Path, version: int) -> None:
    from pipeline.reporting.plots import plot_per_class  # noqa: PLC0415

    plot_per_class(folder / "picture.png", f"{version}", {f"class {n}": n / 60 for n in range(60)}, 0.1)


def save_curve(folder: Path, version: int) -> None:
    state: Any = SimpleNamespace(progress=Progress(history=[{"epoch": n, "loss": version} for n in range(2000)]))
    _write_history(state, SimpleNamespace(folder=folder))  # type: ignore[arg-type]


def save_json(folder: Path, version: int) -> None:
    write_json(folder / "index.json", {str(n): version for n in range(5000)})


def push(folder: Path, version: int) -> None:
    """Write to a working copy with room, whose store is on the full disk."""
    copy = shared(folder) / f"copy-{folder.name}"
    ObjectStore(copy, f"file://{folder}").attach()
    with atomic_write(copy / "metrics.jsonl") as temporary:
        temporary.write_text(f"{version}" * 100_000)


def download(folder: Path, version: int) -> None:
    """Download to a working copy on the full disk, from a store with room."""
    place = shared(folder) / "place"
    place.mkdir(exist_ok=True)
    (place / "metrics.jsonl").write_text(f"{version}" * 100_000)
    if not (folder / ".store.json").is_file():
        ObjectStore(folder, f"file://{place}").attach()
    store = store_of(folder)
    assert store is not None
    download_file(store, folder / "metrics.jsonl", store.list_files(folder)[folder / "metrics.jsonl"])


def attach(folder: Path, version: int) -> None:
    place = "x" * 100_000  # long, so that it has eight levels
    ObjectStore(folder / f"{version}", f"file:///{place}").attach()


WRITERS: dict[str, Writer] = {
    "checkpoint": save_checkpoint,
    "part": lambda folder, version: save_part(folder, version, 100),
    "part of unknown length": save_part,
    "bundle": save_bundle,
    "Hugging Face": save_huggingface,
    "ONNX": save_onnx,
    "scores": save_scores,
    "tags.csv": lambda folder, version: save_tags(folder, version, ".csv"),
    "tags.json": lambda folder, version: save_tags(folder, version, ".json"),
    "tags.parquet": lambda folder, version: save_tags(folder, version, ".parquet"),
    "report": save_report,
    "picture": save_picture,
    "curve": save_curve,
    "JSON": save_json,
    "store": push,
    "from a store": download,
}
"""Functions that commit version 1 or 2 of an artefact to a folder, by name."""


def shared(folder: Path) -> Path:
    """Return a folder on a disk with room, for files that a writer reads."""
    return folder.parents[1] / "shared"


def try_writer(disk: SmallDisk, name: str, levels: int) -> dict[str, Any]:
    """Write version 1 with room, version 2 without room at several levels, then version 2 with room; check each."""
    write, folder = WRITERS[name], disk.folder / "artefact"
    folder.mkdir()
    before: dict[str, str] = {}
    free_levels = [0]  # with one level only, version 1 is left out: writing it takes as long again
    if levels > 1:
        write(folder, 1)
        before, needs = files_in(folder), disk.free - free_after(disk, write)
        assert needs >= levels * PAGE, f"{name} needs {needs} bytes: too few for {levels} levels"
        last = needs - 2 * PAGE  # the note of a working copy exists already
        free_levels = [*(needs * n // levels for n in range(levels - 1)), last]
    failed, known, sentence = 0, 0, ""
    for level in free_levels:
        disk.leave(level)
        with pytest.raises(UserError) as caught:
            write(folder, 2)
        failed, sentence = failed + 1, str(caught.value)
        found = TELLS.search(sentence)
        assert found, sentence
        assert isinstance(caught.value, NoRoomError)
        assert str(disk.folder) in sentence
        assert int(found[3]) == disk.free == level // PAGE * PAGE, sentence
        known += not found[1]
        assert files_in(folder) == before, f"{name}: the folder holds something else than version 1: {sentence}"
    disk.release()
    write(folder, 2)
    after = files_in(folder)
    assert after != before
    shutil.rmtree(folder)
    return {"writer": name, "levels": levels, "failed": failed, "refused_before_writing": known, "sentence": sentence}


def race(disk: SmallDisk) -> dict[str, Any]:
    """Let another process fill the disk while safetensors writes a file, after the check for free space."""
    path = disk.folder / "race.safetensors"
    tables = [{"w": torch.full((10 << 20,), version)} for version in (1.0, 2.0)]
    for tries in range(1, 101):
        disk.release()
        path.unlink(missing_ok=True)
        write_tensors(path, {"w": tables[0]["w"][:10]})
        before, rival = files_in(disk.folder), os.fork()
        if rival == 0:
            fill_once_begun(disk.folder)
        try:
            write_tensors(path, tables[1])
        except NoRoomError as error:
            os.waitpid(rival, 0)
            disk.release()
            if "No space left" not in str(error):
                continue  # the rival was first
            assert files_in(disk.folder) == before
            write_tensors(path, tables[1])
            return {
                "writer": "race",
                "levels": 1,
                "failed": 1,
                "refused_before_writing": 0,
                "tries": tries,
                "sentence": str(error),
            }
        os.waitpid(rival, 0)
    raise AssertionError("no write met a disk that filled under it")


def fill_once_begun(folder: Path) -> NoReturn:
    """Fill the disk as soon as the other process begins a file, then end this process."""
    try:
        while not any(folder.glob(".race*")):
            pass
        with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
    finally:
        os._exit(0)


def free_after(disk: SmallDisk, write: Writer) -> int:
    """Return the free bytes with a second artefact of version 2 on the disk."""
    probe = disk.folder / "probe"
    probe.mkdir()
    write(probe, 2)
    free = disk.free
    shutil.rmtree(probe)
    return free


def main() -> None:
    """Try the named writers, or all of them."""
    root, levels, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    (root / "shared").mkdir()
    disk = SmallDisk(root / "disk", MEGABYTES)
    for name in names or [*WRITERS, "race"]:
        print(json.dumps(race(disk) if name == "race" else try_writer(disk, name, levels)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
