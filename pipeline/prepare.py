"""Turn a data set of recordings into Parquet shards of log-mel filterbanks, in parallel over files; run again to go on.

python pipeline/prepare.py --recipe esc50 --data.source FOLDER --run-dir work/esc50
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ast_core.audio import load_waveform
from ast_core.config import FrontEndConfig, from_dict, require, to_dict
from ast_core.errors import ClipError, UserError
from ast_core.fbank import Fbank, fit_length
from ast_core.files import committed, digest, read_json, sha256_of, write_json
from ast_core.manifest import Clip, Manifest, load_manifest
from ast_core.shards import INDEX, Row, ShardIndex, write_part
from pipeline import cluster
from pipeline.settings import PrepareSettings, parse, run_stage
from pipeline.synthesise import synthesise

AUDIOSET_STATISTICS = (-4.2677393, 4.5689974)
"""Published mean and standard deviation, shown beside a data set's own."""
REJECTS = pa.schema([(name, pa.string()) for name in ("clip_id", "split", "path", "stage", "reason")])


@dataclass(frozen=True)
class Part:
    """The unit of work: some clips that become one Parquet file. It knows all that decides its bytes."""

    folder: str
    name: str
    split: str
    clips: tuple[Clip, ...]
    front_end: dict[str, Any]
    metadata: dict[str, Any]
    key: str
    """Hash of the clips, their files' sizes and times, the labels and the front end."""

    @property
    def marker(self) -> Path:
        """Committed after the Parquet file."""
        return Path(self.folder) / f"{self.name}.json"


def prepare(settings: PrepareSettings) -> ShardIndex:
    """Write what shards are missing, the rejects table and the index.

    Returns:
        The index.

    Raises:
        UserError: the data set is not as its layout says, too many clips are broken, or the disk is full.
    """
    started = time.monotonic()
    manifest, source = _manifest(settings)
    parts = _parts(settings, manifest, source)
    wanted = {clip.split for clip in manifest.clips}
    named = [*settings.data.train_splits, settings.data.validation_split, settings.data.test_split]
    unknown = [split for split in named if split and split not in wanted]
    require(not unknown, f"{source} has no split {', '.join(unknown)}; it has {', '.join(sorted(wanted))}.")
    pending = [part for part in parts if not _done(part)]
    if pending:
        with cluster.connected(settings.address, settings.workers):
            _work(pending, cluster.worker_count(settings.workers))
    else:
        Console().print("Every shard is there already: nothing to do.")
    index = _finish(settings.shards, manifest, parts, settings.front_end)
    seconds = time.monotonic() - started
    _report(index, settings, sum(len(part.clips) for part in pending), seconds)
    _check_rejects(settings, index)
    return index


def _manifest(settings: PrepareSettings) -> tuple[Manifest, Path]:
    if settings.data.source == "synthetic":
        source = synthesise(settings.run_dir / "audio")
        return load_manifest(source, "audioset"), source
    require(bool(settings.data.source), "data.source is empty: give --data.source the folder of the data set.")
    return load_manifest(Path(settings.data.source), settings.data.layout), Path(settings.data.source)


def _parts(settings: PrepareSettings, manifest: Manifest, source: Path) -> list[Part]:
    front_end = to_dict(settings.front_end)
    metadata = {"front_end": front_end, "labels": list(manifest.labels), "single_label": manifest.single_label}
    by_split: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        by_split.setdefault(clip.split, []).append(clip)
    parts = []
    size = settings.prepare.clips_per_part
    for split, clips in by_split.items():
        for number in range(math.ceil(len(clips) / size)):
            chunk = tuple(clips[number * size : (number + 1) * size])
            key = digest({"clips": [_fingerprint(clip, source) for clip in chunk], "metadata": metadata})
            folder = str(settings.shards / split)
            parts.append(Part(folder, f"part-{number:05d}", split, chunk, front_end, metadata, key))
    return parts


def _fingerprint(clip: Clip, source: Path) -> list[Any]:
    """A clip as far as it decides a shard: moved data sets keep their shards, changed files do not."""
    if not clip.path:
        return [clip.clip_id, list(clip.labels)]
    try:
        status = os.stat(clip.path)
        seen = [status.st_size, status.st_mtime_ns]
    except OSError as error:
        seen = [str(error.strerror)]
    return [clip.clip_id, list(clip.labels), os.path.relpath(clip.path, source), *seen]


def _done(part: Part) -> bool:
    """Whether the part is there, whole, and made of just these clips and settings."""
    if not part.marker.is_file():
        return False
    marker = read_json(part.marker, "Marker of a shard")
    path = part.marker.with_suffix(".parquet")
    return bool(marker.get("key") == part.key and path.is_file() and sha256_of(path) == marker["sha256"])


def _work(pending: Sequence[Part], workers: int) -> None:
    """Spread the parts over Ray Data's workers, showing clips as they are done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts clips, Ray Data's blocks
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    items = [{"part": part} for part in pending]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map(_write_row, num_cpus=1, concurrency=workers)
    columns = (TextColumn("prepare"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("prepare", total=sum(len(part.clips) for part in pending))
        try:
            for row in done.iter_rows():
                progress.advance(task, row["clips"])
        except Exception as error:
            _raise_user_error(error)
            raise


def _write_row(row: dict[str, Any]) -> dict[str, Any]:
    write(row["part"])
    return {"clips": len(row["part"].clips)}


def write(part: Part) -> None:
    """Decode, filter and commit one part, its marker last. A broken clip is a row among its rejects.

    Raises:
        UserError: the shard cannot be written.
    """
    torch.set_num_threads(1)
    part.marker.unlink(missing_ok=True)
    config = from_dict(FrontEndConfig, part.front_end)
    rejects: list[dict[str, str]] = []
    rows = list(_rows(part, config, rejects))
    path = part.marker.with_suffix(".parquet")
    written = write_part(path, rows, part.metadata, config.target_frames, config.num_mel_bins)
    write_json(part.marker, {**written, "key": part.key, "rejects": rejects, "listed": len(part.clips)})


def _rows(part: Part, config: FrontEndConfig, rejects: list[dict[str, str]]) -> Iterator[Row]:
    fbank = _front_end(config)
    # Samples past the last frame that is kept are not decoded: ten-hour files cost no more than ten-second ones.
    seconds = (config.target_frames * config.frame_shift_ms + config.frame_length_ms) / 1000
    for clip in part.clips:
        try:
            if not clip.path:
                raise ClipError("missing", "listed, but there is no file")
            fbank_TM = fbank(torch.from_numpy(load_waveform(clip.path, config.sample_rate_hz, seconds)))
        except ClipError as error:
            entry = {"clip_id": clip.clip_id, "split": part.split, "path": clip.path}
            rejects.append({**entry, "stage": error.stage, "reason": error.reason})
        else:
            fitted_TM = fit_length(fbank_TM, config.target_frames).half().numpy()
            yield Row(clip.clip_id, clip.labels, len(fbank_TM), fitted_TM)


@cache
def _front_end(config: FrontEndConfig) -> Fbank:
    return Fbank(config)


def _finish(shards: Path, manifest: Manifest, parts: Sequence[Part], front_end: FrontEndConfig) -> ShardIndex:
    """Rejects table, removal of parts that no longer belong, index last."""
    splits: dict[str, dict[str, Any]] = {}
    rejects: list[dict[str, str]] = []
    for part in parts:
        marker = read_json(part.marker, "Marker of a shard")
        books = splits.setdefault(part.split, {**dict.fromkeys(_COUNTS, 0), "sum": 0.0, "sum_sq": 0.0, "parts": []})
        missing = sum(reject["stage"] == "missing" for reject in marker["rejects"])
        books["listed"] += marker["listed"]
        books["kept"] += marker["rows"]
        books["missing"] += missing
        books["rejected"] += len(marker["rejects"]) - missing
        for key in ("sum", "sum_sq", "count"):
            books[key] += marker[key]
        entry = {"name": f"{part.name}.parquet", "rows": marker["rows"], "sha256": marker["sha256"]}
        books["parts"].append(entry)
        rejects += marker["rejects"]
    for split, books in splits.items():
        whole = books["kept"] + books["rejected"] + books["missing"]
        require(books["listed"] == whole, f"The books of {split} do not balance: {books['listed']} listed, {whole} seen.")
    with committed(shards / "rejects.parquet") as beside:
        pq.write_table(pa.Table.from_pylist(rejects, REJECTS), beside)
    hashes = [[split, *(entry["sha256"] for entry in books["parts"])] for split, books in splits.items()]
    meaning = {"front_end": to_dict(front_end), "labels": list(manifest.labels), "single_label": manifest.single_label}
    values = {**meaning, "layout": manifest.layout, "splits": splits, "data_hash": digest([hashes, meaning])}
    write_json(shards / INDEX, values)
    _remove_stale(shards, parts)
    return ShardIndex.load(shards)


_COUNTS = ("listed", "kept", "rejected", "missing", "count")


def _remove_stale(shards: Path, parts: Sequence[Part]) -> None:
    keep = {part.marker.with_suffix("") for part in parts}
    for path in shards.glob("*/part-*"):
        if path.with_suffix("") not in keep:
            path.unlink()


def _report(index: ShardIndex, settings: PrepareSettings, clips: int, seconds: float) -> None:
    table = Table(title=f"prepare: {settings.shards}")
    for column in ("split", "listed", "kept", "rejected", "missing", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, books in index.splits.items():
        numbers = [books["listed"], books["kept"], books["rejected"], books["missing"], len(books["parts"])]
        table.add_row(split, *(str(number) for number in numbers))
    console = Console(soft_wrap=True)
    console.print(table)
    mean, std = index.statistics(settings.data.train_splits)
    console.print(
        f"log-mel of {', '.join(settings.data.train_splits)}: mean {mean:.4f}, standard deviation {std:.4f} "
        f"(AudioSet's published: {AUDIOSET_STATISTICS[0]:.4f}, {AUDIOSET_STATISTICS[1]:.4f})"
    )
    console.print(f"{clips} clips in {seconds:.1f} s, {clips / seconds:.1f} clips/s; {len(index.labels)} labels")


def _check_rejects(settings: PrepareSettings, index: ShardIndex) -> None:
    rejected = sum(books["rejected"] for books in index.splits.values())
    present = rejected + sum(books["kept"] for books in index.splits.values())
    table = settings.shards / "rejects.parquet"
    reasons = Counter(f"{row['stage']}: {row['reason']}" for row in pq.read_table(table).to_pylist() if row["stage"] != "missing")
    for reason, count in reasons.most_common(5):
        Console(soft_wrap=True, highlight=False).print(f"rejected {count}: {reason}", markup=False)
    require(
        rejected <= settings.prepare.max_reject_share * present,
        f"{rejected} of {present} clips were rejected, more than prepare.max-reject-share "
        f"{settings.prepare.max_reject_share} allows. See {table}; mend the clips or raise the limit.",
    )


def _raise_user_error(error: BaseException) -> None:
    """Raise the `UserError` among an error's causes, if there is one: Ray wraps what its workers raise."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            raise UserError(str(getattr(seen, "cause", seen))) from None
        seen = getattr(seen, "cause", None) or seen.__cause__


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: prepare(parse(PrepareSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.prepare import main

    main()
