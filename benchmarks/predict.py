"""Recordings per second and memory of `predict` on many short files: one file at a time, and with one and two workers.

python benchmarks/predict.py [--recordings 10000] [--listed 1000000]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch
from peers.comparison import arguments, print_machine

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights.bundle import write_bundle

RECORDINGS, QUICK = 10_000, 80
LISTED, QUICK_LISTED = 1_000_000, 1000
RATE_HZ, SECONDS = 16_000, (0.5, 2.0)
LABELS = ["dog", "rain", "siren", "speech", "wind"]
FRONT_END = FrontEndConfig(target_frames=128)
MODEL = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
WAYS = ("one at a time", "1 worker", "2 workers")


def write_model(folder: Path) -> None:
    """Write a bundle of one small model with random weights."""
    torch.manual_seed(0)
    model = AST(MODEL, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(LABELS))
    identity = {"model": to_dict(MODEL), "front_end": to_dict(FRONT_END), "labels": LABELS, "loss": "bce"}
    write_bundle(folder, [("seed-0", model.state_dict(), {**identity, "mean": -5.0, "std": 4.0})], True)


def write_recordings(folder: Path, count: int) -> None:
    """Write short recordings of noise, 500 a folder."""
    rng = np.random.default_rng(0)
    noise_N = rng.normal(0, 0.1, int(RATE_HZ * SECONDS[1]) + count).astype(np.float32)
    for number in range(count):
        path = folder / f"{number // 500:04d}" / f"{number:07d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = int(RATE_HZ * rng.uniform(*SECONDS))
        soundfile.write(path, noise_N[number : number + samples], RATE_HZ, subtype="PCM_16")


class MemoryOverTime:
    """A thread that samples the resident memory of this process, in MB, twice a second."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.samples.append(process.memory_info().rss / 1e6)
            time.sleep(0.5)


def measure(way: str, folder: Path, count: int) -> None:
    """Predict all recordings in one way; print time and memory as JSON. A process of its own runs this."""
    memory = MemoryOverTime()
    started = time.monotonic()
    if way == "one at a time":
        import ast_core  # noqa: PLC0415  # each way loads only what it needs

        torch.set_num_threads(1)
        model = ast_core.load(folder / "model", device="cpu")
        started = time.monotonic()
        found = [model.predict(path) for path in sorted((folder / "in").rglob("*.wav"))]
        done = len(found)
    else:
        from pipeline.cli.stages import PredictSettings  # noqa: PLC0415
        from pipeline.predict import predict  # noqa: PLC0415

        output = f"{folder / way.replace(' ', '-')}/"
        settings = PredictSettings(
            inputs=(str(folder / "in"),), model=str(folder / "model"), output=output, workers=int(way[0]), gpus="no"
        )
        done = predict(settings).predicted
    seconds = time.monotonic() - started
    if done != count:
        raise SystemExit(f"{done} of {count} recordings were predicted")
    tenths = [memory.samples[round(share * (len(memory.samples) - 1))] for share in (0.25, 0.5, 0.75, 1)]
    print("RESULT", json.dumps({"seconds": seconds, "peak": max(memory.samples), "tenths": tenths}))


def measure_listing(folder: Path, count: int) -> None:
    """List empty files in folders of 10,000 as predict does; print time and memory as JSON."""
    from ast_core.storage.name_set import NameSet  # noqa: PLC0415
    from pipeline.predict import _list_chunks  # noqa: PLC0415
    from pipeline.prediction.input_listing import InputListing  # noqa: PLC0415
    from pipeline.prediction.run_summary import PredictSummary  # noqa: PLC0415

    before, started = psutil.Process().memory_info().rss / 1e6, time.monotonic()
    memory = MemoryOverTime()
    summary = PredictSummary()
    chunks = _list_chunks(InputListing([str(folder)]), NameSet(), summary)
    seconds = time.monotonic() - started
    if summary.listed != count:
        raise SystemExit(f"{summary.listed} of {count} files were listed")
    held = sum(map(len, chunks)) / 1e6
    print("RESULT", json.dumps({"seconds": seconds, "before": before, "peak": max(memory.samples), "held": held}))


def run_apart(*words: str) -> dict[str, float | list[float]]:
    """Run one measurement in a process of its own; return what it printed."""
    command = [sys.executable, __file__, "--measure", *words]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    line = next(line for line in shown.splitlines() if line.startswith("RESULT"))
    result: dict[str, float | list[float]] = json.loads(line.removeprefix("RESULT"))
    return result


def main() -> None:
    """Measure each way in turn, then the listing."""
    parser = arguments(__doc__)
    parser.add_argument("--recordings", type=int, default=RECORDINGS)
    parser.add_argument("--listed", type=int, default=LISTED)
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "FOLDER", "COUNT"), help="used by the benchmark itself")
    args = parser.parse_args()
    if args.measure:
        way, place, number = args.measure
        measure_listing(Path(place), int(number)) if way == "listing" else measure(way, Path(place), int(number))
        return
    count, listed = (QUICK, QUICK_LISTED) if args.quick else (args.recordings, args.listed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        write_recordings(folder / "in", count)
        print(f"{count} recordings of {SECONDS[0]} to {SECONDS[1]} s")
        for way in WAYS:
            result = run_apart(way, name, str(count))
            seconds, tenths = float(result["seconds"]), result["tenths"]  # type: ignore[arg-type]
            over_time = ", ".join(f"{value:.0f}" for value in tenths)  # type: ignore[union-attr]
            print(
                f"{way:14} {count / seconds:7.1f} recordings/s, {seconds:.1f} s with the start; memory of the driver: "
                f"peak {result['peak']:.0f} MB; after each quarter {over_time} MB"
            )
        for number in range(listed):
            path = folder / "listed" / f"{number // 10_000:04d}" / f"{number:07d}.wav"
            if number % 10_000 == 0:
                path.parent.mkdir(parents=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        result = run_apart("listing", f"{name}/listed", str(listed))
        print(
            f"{listed} files listed in {result['seconds']:.1f} s; memory {result['before']:.0f} MB before, at most "
            f"{result['peak']:.0f} MB; the list is {result['held']:.1f} MB"
        )
    print_machine()


if __name__ == "__main__":
    main()
