"""Turn a data set of recordings into Parquet shards of log-mel filterbanks, in parallel over files; run again to go on.

python pipeline/prepare.py --recipe esc50 --data.source FOLDER --run-dir work/esc50
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ast_core.dataset.manifest import Clip, Manifest, load_manifest
from ast_core.dataset.synthetic import make_demo_audio
from ast_core.errors import require
from ast_core.serialization import to_dict
from ast_core.shards.index import INDEX, REJECTS, ShardIndex
from ast_core.storage.atomic_files import atomic_write, list_stored, remove_file, remove_temporary_files
from ast_core.storage.json_files import read_hashed_json, sha256_of_json, write_hashed_json
from ast_core.storage.object_store import store_of
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import PrepareSettings
from pipeline.ray_runtime import connection
from pipeline.ray_runtime.liveness import LivenessWatch
from pipeline.ray_runtime.shard_part import (
    PartResult,
    PartTask,
    ShardPart,
    is_complete,
    is_complete_in_store,
    write_part_row,
)
from pipeline.reporting import prometheus
from pipeline.run_folder import folder_lock, sync

AUDIOSET_STATISTICS = (-4.2677393, 4.5689974)
"""Published mean and standard deviation, shown beside a data set's own."""
REJECTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "split", "path", "stage", "reason")])


def prepare(settings: PrepareSettings) -> ShardIndex:
    """Write what shards are missing, the rejects table and the index.

    Returns:
        The index.

    Raises:
        UserError: the data set is not as its layout says, too many clips are broken, or the disk is full.
    """
    sync.download_inputs(settings)
    with folder_lock.lock_folder(settings.shards, "prepared"):
        return _prepared(settings)


def _prepared(settings: PrepareSettings) -> ShardIndex:
    started = time.monotonic()
    manifest, source = _manifest(settings)
    parts = plan(settings, manifest, source)
    pending = _pending(settings, parts)
    if pending:
        remove_file(settings.shards / INDEX)  # it speaks of shards that are about to change
        with connection.connect(settings.address, settings.workers):
            _check_source(settings)
            _work(pending, settings)
    else:
        Console().print("Every shard is there already: nothing to do.")
    sync.download_markers(settings.shards, [part.marker for part in parts])
    splits, rejects = _books(parts)
    with atomic_write(settings.shards / REJECTS) as temporary, temporary.open("wb") as file:
        pq.write_table(pa.Table.from_pylist(rejects, REJECTS_SCHEMA), file)
    _report(settings.shards, splits)
    _check_rejects(settings, splits, rejects)
    index = _write_index(settings, manifest, splits)
    _remove_stale(settings.shards, parts)
    _report_statistics(index, settings, sum(len(part.clips) for part in pending), time.monotonic() - started)
    return index


def _manifest(settings: PrepareSettings) -> tuple[Manifest, Path]:
    if settings.data.source == "synthetic":
        source = make_demo_audio(settings.run_dir / "audio")
        return load_manifest(source, "audioset"), source
    require(bool(settings.data.source), "data.source is empty: give --data.source the folder of the data set.")
    return load_manifest(Path(settings.data.source), settings.data.layout), Path(settings.data.source)


def plan(settings: PrepareSettings, manifest: Manifest, source: Path) -> list[ShardPart]:
    """The parts that a manifest's clips are cut into, split by split, in the manifest's order.

    Raises:
        UserError: a split that the settings name is not there.
    """
    by_split: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        by_split.setdefault(clip.split, []).append(clip)
    named = [*settings.data.train_splits, settings.data.validation_split, settings.data.test_split]
    unknown = [split for split in named if split and split not in by_split]
    require(
        not unknown,
        f"{source} has no split {', '.join(unknown)}; it has {', '.join(sorted(by_split))}. Say which to use with "
        "--data.train-splits, --data.test-split and --data.validation-split ('' for none).",
    )
    front_end = to_dict(settings.front_end)
    metadata = {"front_end": front_end, "labels": list(manifest.labels), "single_label": manifest.single_label}
    root, size = os.path.realpath(source), settings.prepare.clips_per_part
    parts = []
    for split, clips in by_split.items():
        for number in range(math.ceil(len(clips) / size)):
            chunk = tuple(clips[number * size : (number + 1) * size])
            folder = str(settings.shards / split)
            name, limit_s = f"part-{number:05d}", settings.prepare.decode_limit_s
            parts.append(ShardPart(folder, name, split, chunk, root, front_end, metadata, limit_s))
    return parts


def _pending(settings: PrepareSettings, parts: Sequence[ShardPart]) -> list[ShardPart]:
    """The parts that are not there: in the store, if the shards are a working copy, and here otherwise."""
    store = store_of(settings.shards)
    check = (
        is_complete
        if store is None
        else functools.partial(is_complete_in_store, store=store, listed=list_stored(settings.shards))
    )
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(check, parts))
    return [part for part, finished in zip(parts, done, strict=True) if not finished]


def _check_source(settings: PrepareSettings) -> None:
    """Said at once, not as thousands of clips that other nodes miss."""
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    require(
        alone or settings.data.source != "synthetic" or store_of(settings.run_dir) is None,
        "The recipe's audio is made on this node, where the others cannot read it. Give --data.source a folder that "
        "every node has at the same path.",
    )


def _work(pending: Sequence[ShardPart], settings: PrepareSettings) -> None:
    """Spread the parts over Ray Data's workers, by default one a CPU (GPUs do not count here), showing clips done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts clips, Ray Data's blocks
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    workers = min(settings.workers or int(ray.cluster_resources().get("CPU", 1)), len(pending))
    with LivenessWatch("prepare", workers) as watch:
        stores = sync.object_stores(settings)
        items = [PartTask(part, stores, watch.name).to_row() for part in pending]
        parts = ray.data.from_items(items, override_num_blocks=len(items))
        done = parts.map(write_part_row, num_cpus=1, concurrency=min(settings.workers, len(items)) or None)
        _follow(done, sum(len(part.clips) for part in pending), str(settings.run_dir))


def _follow(done: ray.data.Dataset, clips: int, run: str) -> None:
    """Run the data set; show and count the clips of its parts as they are done."""
    columns = (TextColumn("prepare"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("prepare", total=clips)
        for row in done.iter_rows():
            result = PartResult(**row)
            require(not result.error, result.error)
            progress.advance(task, result.clips)
            prometheus.count_prepared(run, result.clips, result.rejected, result.missing)


Splits = dict[str, dict[str, Any]]


def _books(parts: Sequence[ShardPart]) -> tuple[Splits, list[dict[str, str]]]:
    """What the markers say, added up by split and checked, and all rejects."""
    splits: Splits = {}
    rejects: list[dict[str, str]] = []
    for part in parts:
        marker = read_hashed_json(part.marker, "Marker of a shard")
        counts = dict.fromkeys(("listed", "kept", "rejected", "missing", "count"), 0)
        books = splits.setdefault(part.split, {**counts, "sum": 0.0, "sum_sq": 0.0, "parts": []})
        missing = sum(reject["stage"] == "missing" for reject in marker["rejects"])
        books["listed"] += len(part.clips)
        books["kept"] += marker["rows"]
        books["missing"] += missing
        books["rejected"] += len(marker["rejects"]) - missing
        for key in ("sum", "sum_sq", "count"):
            books[key] += marker[key]
        entry = {"name": f"{part.name}.parquet", "rows": marker["rows"], "sha256": marker["sha256"]}
        books["parts"].append(entry)
        rejects += marker["rejects"]
    for split, books in splits.items():
        listed, whole = books["listed"], books["kept"] + books["rejected"] + books["missing"]
        require(listed == whole, f"The books of {split} do not balance: {listed} listed, {whole} seen. Run again.")
    return splits, rejects


def _write_index(settings: PrepareSettings, manifest: Manifest, splits: Splits) -> ShardIndex:
    hashes = [[split, *(entry["sha256"] for entry in books["parts"])] for split, books in splits.items()]
    meaning: dict[str, Any] = {"front_end": to_dict(settings.front_end), "labels": list(manifest.labels)}
    meaning["single_label"] = manifest.single_label
    values = {**meaning, "layout": manifest.layout, "splits": splits, "data_hash": sha256_of_json([hashes, meaning])}
    write_hashed_json(settings.shards / INDEX, values)
    return ShardIndex.load(settings.shards)


def _remove_stale(shards: Path, parts: Sequence[ShardPart]) -> None:
    """Remove parts that the index does not name, and what a killed writer left."""
    keep = {part.marker.with_suffix("") for part in parts}
    stored = [path for path in list_stored(shards) if path.match("*/part-*") and path.parents[1] == shards]
    there = {*shards.glob("*/part-*"), *shards.glob("*/.part-*"), *stored}
    for path in sorted(there, key=lambda path: path.suffix != ".json"):  # markers first
        if path.with_suffix("") not in keep:
            remove_file(path)
    for name in (INDEX, REJECTS):
        remove_temporary_files(shards, name)


def _report(shards: Path, splits: Splits) -> None:
    table = Table(title=f"prepare: {shards}")
    for column in ("split", "listed", "kept", "rejected", "missing", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, books in splits.items():
        numbers = [books["listed"], books["kept"], books["rejected"], books["missing"], len(books["parts"])]
        table.add_row(split, *(str(number) for number in numbers))
    Console(soft_wrap=True).print(table)


def _report_statistics(index: ShardIndex, settings: PrepareSettings, clips: int, seconds: float) -> None:
    console = Console(soft_wrap=True)
    mean, std = index.statistics(settings.data.train_splits)
    console.print(
        f"log-mel of {', '.join(settings.data.train_splits)}: mean {mean:.4f}, standard deviation {std:.4f} "
        f"(AudioSet's published: {AUDIOSET_STATISTICS[0]:.4f}, {AUDIOSET_STATISTICS[1]:.4f})"
    )
    if clips:
        console.print(f"{clips} clips in {seconds:.1f} s, {clips / seconds:.1f} clips/s; {len(index.labels)} labels")


def _check_rejects(settings: PrepareSettings, splits: Splits, rejects: Sequence[dict[str, str]]) -> None:
    """Show the commonest reasons; UserError if more clips were rejected than the settings allow."""
    rejected = sum(books["rejected"] for books in splits.values())
    present = rejected + sum(books["kept"] for books in splits.values())
    reasons = Counter(f"{row['stage']}: {row['reason']}" for row in rejects if row["stage"] != "missing")
    for reason, count in reasons.most_common(5):
        Console(soft_wrap=True, highlight=False).print(f"rejected {count}: {reason}", markup=False)
    require(
        rejected <= settings.prepare.max_reject_share * present,
        f"{rejected} of {present} clips were rejected, more than prepare.max-reject-share "
        f"{settings.prepare.max_reject_share} allows. See {settings.shards / REJECTS}; "
        "mend the clips or raise the limit.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: prepare(parse_settings(PrepareSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.prepare import main

    main()
