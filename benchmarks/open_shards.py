"""CPU time and memory of opening shards in a rank: through the clip index, and by opening every part.

The peer opens every part and keeps dense labels, as version 0.1 did. Each opening runs in a process of its own. The
made parts have the columns of real ones; their filterbanks are short, because opening does not read them.

python benchmarks/open_shards.py                              # 200 parts of 512 clips, and a projection to AudioSet-2M
python benchmarks/open_shards.py --clips 2000000 --parts 4000 --rounds 1  # all of it: a minute of CPU, 300 MB
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peers.comparison import Seconds, arguments, print_machine, print_ratio, verdict
from peers.made_data import made_rows

from ast_core.shards.clip_index import CLIP_INDEX, write_clip_index
from ast_core.shards.clip_table import join_tables
from ast_core.shards.index import INDEX
from ast_core.shards.part_file import read_part
from ast_core.shards.writer import WrittenPart, write_part
from ast_core.storage.json_files import write_hashed_json

CLIPS, PARTS, CLASSES, ROUNDS = 102_400, 200, 527, 3
AUDIOSET_CLIPS = 2_000_000
SHAPE = 2, 16
"""Frames and mel bins of the made clips."""
GOAL_S, GOAL_MIB = 3.0, 200.0
FIRST, TRAIN = "first", "unbalanced_train"
"""Splits: one clip that loads what the first opening of a process loads, and the clips that are measured."""
WAYS = {"every part, dense labels": "dense", "every part": "parts", "clip index": "index"}
PROGRAM = """
import contextlib, json, sys, time
from pathlib import Path
import numpy as np
from ast_core.shards.reader import ShardReader
from peers.dense_opening import open_dense

def mebibytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

folder, way = Path(sys.argv[1]), sys.argv[2]
opened = [(open_dense(folder, split) if way == "dense" else ShardReader(folder, [split])) for split in ["first"]]
with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, started = mebibytes("VmRSS"), time.process_time()
reader = open_dense(folder, "unbalanced_train") if way == "dense" else ShardReader(folder, ["unbalanced_train"])
seconds = time.process_time() - started
figures = [seconds, mebibytes("VmRSS") - before, mebibytes("VmHWM") - before, mebibytes("RssAnon")]
if way != "dense":
    started = time.perf_counter()
    reader.read(np.random.default_rng(0).integers(len(reader), size=24))
    figures.append(time.perf_counter() - started)
print(json.dumps(figures))
"""


def write_made_shards(folder: Path, clips: int, parts: int) -> None:
    """Write shards with a clip index to `folder/index`, and the same shards without one to `folder/parts`.

    Parts with the same number of clips are copies of one part.
    """
    splits = {}
    for split, sizes in {FIRST: [1], TRAIN: share(clips, parts)}.items():
        written: dict[int, tuple[Path, WrittenPart]] = {}
        entries, paths = [], []
        for number, size in enumerate(sizes):
            path = folder / "parts" / split / f"part-{number:05d}.parquet"
            if size in written:
                shutil.copyfile(written[size][0], path)
            else:
                written[size] = path, write_part(path, made_rows(split, range(size), SHAPE, CLASSES), {}, *SHAPE)
            entries.append(
                {"name": path.name, "rows": size, "sha256": written[size][1].sha256, "bytes": path.stat().st_size}
            )
            paths.append(path)
        tables = {size: read_part(path, size, SHAPE, CLASSES) for size, (path, _) in written.items()}
        sha256 = write_clip_index(
            folder / "parts" / split / CLIP_INDEX, join_tables([tables[size] for size in sizes], CLASSES)
        )
        counts = {"listed": sum(sizes), "kept": sum(sizes), "rejected": 0, "missing": 0}
        sums = {"sum": 0.0, "sum_sq": 0.0, "count": 0}
        splits[split] = {**counts, **sums, "parts": entries, "clip_index": sha256}
        (folder / "index").mkdir(exist_ok=True)
        (folder / "index" / split).symlink_to(folder / "parts" / split)
    write_index(folder / "index", splits)
    write_index(folder / "parts", {split: {**own, "clip_index": ""} for split, own in splits.items()})


def share(clips: int, parts: int) -> list[int]:
    """Return the clips of each part, in at most two sizes."""
    return [clips // parts + (number < clips % parts) for number in range(parts)]


def write_index(folder: Path, splits: Mapping[str, Any]) -> None:
    """Write `index.json` of made shards."""
    meaning = {"front_end": {"target_frames": SHAPE[0], "num_mel_bins": SHAPE[1]}, "single_label": False}
    rest = {"labels": [f"label {c}" for c in range(CLASSES)], "layout": "manifest", "data_hash": "made"}
    write_hashed_json(folder / INDEX, {**meaning, **rest, "splits": splits})


def measure(folder: Path, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Yield each way and its figures, round by round: CPU seconds, MiB kept, MiB at most, private MiB, read seconds."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'benchmarks'}"}
    for _ in range(rounds):
        for name, way in WAYS.items():
            command = [sys.executable, "-c", PROGRAM, str(folder / ("index" if way == "index" else "parts")), way]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603, our own program
            yield name, json.loads(done.stdout)


def main() -> None:
    """Write shards, then open them in each way."""
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips of the made shards")
    parser.add_argument("--parts", type=int, default=PARTS, help="parts that they are spread over")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="openings in each way")
    args = parser.parse_args()
    clips, parts, rounds = (2_000, 10, 1) if args.quick else (args.clips, args.parts, args.rounds)
    figures: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as name:
        write_made_shards(Path(name), clips, parts)
        for way, values in measure(Path(name), rounds):
            figures[way].append(values)
    scale = AUDIOSET_CLIPS / clips
    print(f"{clips} clips of {CLASSES} classes in {parts} parts, medians of {rounds} interleaved rounds:")
    seconds: Seconds = {}
    for way, rows in figures.items():
        cpu, kept, peak = (statistics.median(row[column] for row in rows) for column in range(3))
        seconds[way] = [row[0] for row in rows]
        projected = "" if clips == AUDIOSET_CLIPS else f"; AudioSet-2M: {cpu * scale:.2f} s, {kept * scale:.0f} MiB"
        print(f"{way}: {cpu:.3f} s of CPU, {kept:.0f} MiB more, {peak:.0f} MiB more while opening{projected}")
    print_ratio(seconds, "every part, dense labels", "clip index")
    own = figures["clip index"]
    cpu, kept = (statistics.median(row[column] for row in own) * scale for column in range(2))
    reached = verdict(cpu < GOAL_S and kept < GOAL_MIB)
    goal = f"goal {GOAL_S:g} s, {GOAL_MIB:g} MiB: {reached}"
    print(f"AudioSet-2M through the clip index: {cpu:.2f} s of CPU, {kept:.0f} MiB; {goal}")
    print_machine()


if __name__ == "__main__":
    main()
