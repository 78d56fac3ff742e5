"""Memory and speed of preparing and training on many short clips, against a tenth of them.

python benchmarks/load_clips.py [--clips 20000]
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from peers.comparison import arguments, print_machine, verdict
from peers.memory import Peak, Watch, objects_mb

from ast_core.shards.index import INDEX
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import PrepareSettings, TrainSettings
from pipeline.prepare import prepare
from pipeline.ray_runtime import connection
from pipeline.train import job_of, train

CLIPS, QUICK, WORKERS = 20_000, 200, 2
GOAL = 1.25
"""Largest ratio of the memory that all clips need to the memory that a tenth of them needs."""
CLASSES, RATE_HZ = 5, 16_000
FORGET_S = 20
"""Longest time until Ray's object store has dropped a stage's objects."""
COMPARED = {"driver": "driver_own", "heaviest worker": "worker_own", "all with mapped shards": "tree"}
"""Fields of `Peak` that must not grow with the number of clips, by the name that is printed."""
BROKEN_EVERY = 200
"""Clips for each broken one: half a percent is broken, and the recipe allows one percent."""
FRAMES, BINS = 64, 64
FLAGS = f"""
    --recipe esc50_small --workers {WORKERS} --experiment load --front-end.target-frames {FRAMES}
    --front-end.num-mel-bins {BINS} --data.layout folders --data.train-splits train --data.test-split test
"""
TRAIN_FLAGS = f"""
    --model.patch-freq {BINS} --model.freq-stride {BINS} --augment.freq-mask-bins 8 --augment.time-mask-frames 8
    --optim.epochs 1 --optim.batch-size 48 --optim.average-first-epoch 1
"""


@dataclasses.dataclass(frozen=True)
class Load:
    """Time and memory of one stage over some clips."""

    stage: str
    """Name of the stage."""
    clips: int
    """Clips that the stage read."""
    seconds: float
    """Seconds of all of `prepare`, or of the epoch of `train` without the start of its workers."""
    peak: Peak
    """Largest memory during the stage."""
    objects_left_mb: float
    """MiB that the stage left in Ray's object store."""


def make_clips(folder: Path, count: int) -> int:
    """Write clips of 0.5 to 1 s as `CLASS/NUMBER.wav`, tones in noise; return how many are broken on purpose."""
    rng = np.random.default_rng(count)
    noise_N = rng.normal(0, 0.02, 4 * RATE_HZ).astype(np.float32)
    times_N = np.arange(RATE_HZ) / RATE_HZ
    tones_CN = [np.sin(2 * np.pi * 220 * 2**label * times_N).astype(np.float32) / 4 for label in range(CLASSES)]
    for label in range(CLASSES):
        (folder / f"class-{label}").mkdir(parents=True)
    for number in range(count):
        label, length = number % CLASSES, int(rng.integers(RATE_HZ // 2, RATE_HZ))
        start = int(rng.integers(3 * RATE_HZ))
        path = folder / f"class-{label}" / f"{number:06d}.wav"
        soundfile.write(path, tones_CN[label][:length] + noise_N[start : start + length], RATE_HZ, subtype="PCM_16")
        if number % BROKEN_EVERY == 0:
            _break(path, number // BROKEN_EVERY)
    return -(-count // BROKEN_EVERY)


def _break(path: Path, number: int) -> None:
    """Replace a file by an empty one, by its first half, or by a page of HTML."""
    whole = path.read_bytes()
    path.write_bytes((b"", whole[: len(whole) // 2], b"<!DOCTYPE html><title>404</title>")[number % 3])


def prepare_clips(source: Path, folder: Path, clips: int, broken: int) -> Load:
    """Prepare in this process, on the Ray that it is connected to.

    Args:
        source: folder of the clips.
        folder: folder of the run.
        clips: number of clips in the source.
        broken: number of broken clips among them.

    Raises:
        SystemExit: the counts of kept and rejected clips are wrong.
    """
    flags = [*FLAGS.split(), "--data.source", str(source), "--run-dir", str(folder)]
    done = _measure("prepare", clips, lambda: prepare(parse_settings(PrepareSettings, "", flags)))
    kept, rejected = (sum(books[key] for books in _splits(folder).values()) for key in ("kept", "rejected"))
    if (kept, rejected) != (clips - broken, broken):
        raise SystemExit(f"{clips} clips, {broken} of them broken, became {kept} kept and {rejected} rejected")
    return done


def train_on_clips(folder: Path) -> Load:
    """Train an epoch on the shards of `prepare_clips`, in this process, on the Ray that it is connected to."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    flags = [*FLAGS.split(), *TRAIN_FLAGS.split(), "--run-dir", str(folder), "--tracking", store]
    settings = parse_settings(TrainSettings, "", flags)
    done = _measure("train", _splits(folder)["train"]["kept"], lambda: train(settings))
    rows = (job_of(settings).folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return dataclasses.replace(done, seconds=json.loads(rows[-1])["seconds"])


def _splits(folder: Path) -> dict[str, dict[str, int]]:
    splits: dict[str, dict[str, int]] = json.loads((folder / "shards" / INDEX).read_text(encoding="utf-8"))["splits"]
    return splits


def _measure(stage: str, clips: int, work: Callable[[], object]) -> Load:
    """Run a stage and return its time and memory."""
    before = objects_mb()
    with Watch(os.getpid()) as watch:
        started = time.monotonic()
        work()
        seconds = time.monotonic() - started
        gc.collect()  # Ray Data's plans hold references to themselves
        deadline = time.monotonic() + FORGET_S
        while (left := objects_mb() - before) > 1 and time.monotonic() < deadline:  # Ray frees objects with a delay
            time.sleep(0.1)
    return Load(stage, clips, seconds, watch.peak, left)


def growth(few: Load, many: Load) -> dict[str, float]:
    """Return the ratio of the memory of many clips to that of few, by the names of `COMPARED`."""
    return {name: _of(many, name) / max(1.0, _of(few, name)) for name in COMPARED}


def _of(load: Load, name: str) -> float:
    return float(getattr(load.peak, COMPARED[name]))


def measure_stages(source: Path, folder: Path, clips: int, broken: int) -> list[Load]:
    """Run both stages on a Ray of their own, so that no earlier work counts; their output goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr), connection.connect("", WORKERS):
        return [prepare_clips(source, folder, clips, broken), train_on_clips(folder)]


def report(few: Load, many: Load) -> None:
    """Print speed and memory of both, and the memory of a million clips, extrapolated from the two."""
    for load in (few, many):
        peak = load.peak
        print(
            f"{load.stage}, {load.clips} clips: {load.seconds:.1f} s, {load.clips / load.seconds:.0f} clips/s; MiB at "
            f"most: driver {peak.driver:.0f} ({peak.driver_own:.0f} its own), heaviest worker {peak.worker:.0f} "
            f"({peak.worker_own:.0f}), all processes {peak.tree:.0f}, of these shared memory {peak.shared:.0f}, Ray's "
            f"object store {peak.objects:.0f} ({load.objects_left_mb:.0f} at the end)"
        )
    times = growth(few, many)
    more = many.clips - few.clips
    slopes = {name: max(0.0, _of(many, name) - _of(few, name)) / more * 1e6 / 1024 for name in COMPARED}
    print(
        f"ratio {max(times.values()):.2f}: the most of {', '.join(f'{n} {v:.2f}' for n, v in times.items())}; "
        f"{many.clips / few.clips:.0f} times the clips; goal under {GOAL}: {verdict(max(times.values()) < GOAL)}"
    )
    print(f"a million clips would add, in GiB: {', '.join(f'{n} {v:.1f}' for n, v in slopes.items())}")


def main() -> None:
    """Measure a tenth of the clips, then all of them, each in a new process with a new Ray."""
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    args = parser.parse_args()
    most = QUICK if args.quick else args.clips
    loads = []
    with tempfile.TemporaryDirectory() as name:
        for clips in (most // 10, most):
            folder = Path(name) / str(clips)
            broken = make_clips(folder / "audio", clips)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                loads.append(fresh.submit(measure_stages, folder / "audio", folder / "run", clips, broken).result())
    for few, many in zip(*loads, strict=True):
        report(few, many)
    print_machine()


if __name__ == "__main__":
    main()
