"""Turn a data set of recordings into Parquet shards of log-mel filterbanks, in parallel over files; run again to go on.

ast-pipeline prepare --recipe esc50 --data.source FOLDER --run-dir work/esc50
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["prepare", *sys.argv[1:]])
    sys.exit()


import ray.data
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ast_core.config import AUDIOSET_MEAN, AUDIOSET_STD
from ast_core.dataset.manifest import Clip, Manifest
from ast_core.errors import require
from ast_core.shards.index import REJECTS, ShardIndex
from ast_core.storage.places import root_of
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import PrepareSettings
from pipeline.preparation.part_cuts import cut_clips, note_large_groups
from pipeline.preparation.part_device import choose_device, count_gpus
from pipeline.preparation.part_stream import stream_parts, write_parts
from pipeline.ray_runtime import connection
from pipeline.ray_runtime.liveness import LivenessWatch
from pipeline.ray_runtime.shard_part import PartResult, PartTask, ShardMetadata, ShardPart
from pipeline.reporting import prometheus
from pipeline.reporting.class_counts import classes_table, order_splits, warn_of_empty_classes
from pipeline.run_folder import sync
from pipeline.run_folder.listed_clips import (
    SYNTHETIC,
    check_missing,
    describe_listing,
    find_source,
    list_clips,
    missing_splits,
)
from pipeline.run_folder.opened import opened
from pipeline.run_folder.shard_folder import ShardFolder, Splits


def prepare(settings: PrepareSettings) -> ShardIndex:
    """Write the shards that are missing, the table of rejects and the index.

    Returns:
        The index.

    Raises:
        UserError: the data set does not fit its layout, too many clips are broken, or the disk is full.
    """
    with opened(settings, exclusive="prepare") as run:
        started = time.monotonic()
        source = find_source(settings.data, run)
        manifest, split_rule = list_clips(settings.data, source, run.shards, run.archive_listings)
        large = note_large_groups(manifest.clips, settings.prepare.clips_per_part, manifest.audio_column)
        for note in [*manifest.notes, *([large] if large else [])]:
            Console(soft_wrap=True, highlight=False).print(note, markup=False)
        shards = ShardFolder(run.shards, plan(settings, manifest, source))
        known = shards.find_device() if settings.prepare.device == "auto" else ""
        shards = shards.with_device(known or shards.device)
        _report_listing(manifest)
        check_missing(manifest, settings.data, settings.prepare)
        pending = shards.pending()
        if pending:
            shards.remove_index()
            with connection.connect(settings.address, settings.workers):
                _check_source(settings)
                device = choose_device(settings.prepare.device, known)
                _work([dataclasses.replace(part, device=device) for part in pending], settings)
        else:
            Console().print("Every shard exists already: there is nothing to do.")
        splits, rejects = shards.count()
        _report(run.shards, splits)
        _check_rejects(settings, splits, rejects)
        index = shards.write_index(manifest, settings.front_end, splits, split_rule)
        _report_classes(index, settings)
    _report_statistics(index, settings, sum(len(part.clips) for part in pending), time.monotonic() - started)
    return index


def plan(settings: PrepareSettings, manifest: Manifest, source: Path | str) -> list[ShardPart]:
    """Cut a manifest's clips into parts, split by split, in the manifest's order.

    Raises:
        UserError: a split that the settings name does not exist.
    """
    by_split: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        by_split.setdefault(clip.split, []).append(clip)
    sentence = missing_splits(settings.data, source, by_split)
    require(not sentence, sentence)
    metadata = ShardMetadata(settings.front_end, manifest.labels, manifest.single_label)
    column, limit_s = manifest.audio_column, settings.prepare.decode_limit_s
    device = "cuda" if settings.prepare.device == "cuda" else "cpu"
    root, parts = root_of(source), []
    for split, clips in by_split.items():
        folder = str(settings.shards / split)
        for number, chunk in enumerate(cut_clips(clips, settings.prepare.clips_per_part, column)):
            name = f"part-{number:05d}"
            parts.append(ShardPart(folder, name, split, chunk, root, metadata, limit_s, column, device))
    return parts


def _report_listing(manifest: Manifest) -> None:
    for sentence in describe_listing(manifest):
        Console(soft_wrap=True, highlight=False).print(sentence, markup=False)


def _check_source(settings: PrepareSettings) -> None:
    """Refuse at once what would end in thousands of clips that other nodes do not find."""
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    require(
        alone or settings.data.source != SYNTHETIC or not sync.object_stores(settings),
        "The recipe's audio is made on this node, and the other nodes cannot read it. Give --data.source a folder that "
        "every node has at the same path.",
    )


def _work(pending: Sequence[ShardPart], settings: PrepareSettings) -> None:
    """Spread the parts over Ray Data's workers, by default one decoder a CPU, showing clips done.

    The filterbanks are computed by the same workers, or by one worker a GPU.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts clips, Ray Data's blocks
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = count_gpus() if pending[0].device == "cuda" else 0
    workers = min(settings.workers or int(ray.cluster_resources().get("CPU", 1)), len(pending)) + bool(gpus)
    with LivenessWatch("prepare", workers) as watch:
        stores = sync.object_stores(settings)
        tasks = [PartTask(part, stores, watch.name) for part in pending]
        done = stream_parts(tasks, settings.workers, gpus) if gpus else write_parts(tasks, settings.workers)
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


def _report(shards: Path, splits: Splits) -> None:
    table = Table(title=f"prepare: {shards}")
    for column in ("split", "listed", "kept", "rejected", "missing", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, counts in splits.items():
        numbers = [counts.listed, counts.kept, counts.rejected, counts.missing, len(counts.parts)]
        table.add_row(split, *(str(number) for number in numbers))
    Console(soft_wrap=True).print(table)


def _report_classes(index: ShardIndex, settings: PrepareSettings) -> None:
    """Print the clips of each class and split, and name the classes that a split lacks."""
    console = Console(soft_wrap=True, highlight=False)
    counts = order_splits(index.class_counts, settings.data)
    console.print(classes_table(index.labels, counts))
    for sentence in warn_of_empty_classes(index.labels, counts, settings.data):
        console.print(f"Warning: {sentence}", markup=False)


def _report_statistics(index: ShardIndex, settings: PrepareSettings, clips: int, seconds: float) -> None:
    console = Console(soft_wrap=True)
    mean, std = index.statistics(settings.data.train_splits)
    console.print(
        f"log-mel of {', '.join(settings.data.train_splits)}: mean {mean:.4f}, standard deviation {std:.4f} "
        f"(AudioSet's published: {AUDIOSET_MEAN:.4f}, {AUDIOSET_STD:.4f})"
    )
    if clips:
        console.print(f"{clips} clips in {seconds:.1f} s, {clips / seconds:.1f} clips/s; {len(index.labels)} labels")


def _check_rejects(settings: PrepareSettings, splits: Splits, rejects: Sequence[dict[str, str]]) -> None:
    """Print the most frequent reasons; UserError if more clips were rejected than the settings allow."""
    rejected = sum(counts.rejected for counts in splits.values())
    present = rejected + sum(counts.kept for counts in splits.values())
    reasons = Counter(f"{row['stage']}: {row['reason']}" for row in rejects if row["stage"] != "missing")
    for reason, count in reasons.most_common(5):
        Console(soft_wrap=True, highlight=False).print(f"rejected {count}: {reason}", markup=False)
    require(
        rejected <= settings.prepare.max_reject_share * present,
        f"{rejected} of {present} clips were rejected, more than prepare.max-reject-share "
        f"{settings.prepare.max_reject_share} allows. See {settings.shards / REJECTS}; "
        "fix the clips or raise the limit.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: prepare(parse_settings(PrepareSettings, __doc__, argv)))
