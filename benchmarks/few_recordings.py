"""Accuracy of six ways to learn the classes of a small data set from few clips per class, and their CPU seconds.

python benchmarks/few_recordings.py ESC-10 --model work/pretrained/bundles/seed-0 --output few.json
python benchmarks/few_recordings.py ESC-10 --model BUNDLE --output few.json --methods k-NN LoRA --clips-per-class 5

The folder has ESC-50's layout. One fold is the test, and the others are the training clips. A seed draws the clips, and
fewer clips are a subset of more. The same drawn clips train every method. Each cell of the table is written to the
output as soon as it is done: the same command again computes only the cells that are missing.

The trainings have the same steps, batches and augmentation; the mean of their last three epochs is tested. The
intervals are of the test clips: a bootstrap of each clip's mean over the seeds. They do not include what other training
clips would change. Without a folder, noise with loud bands and a model with random weights show that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers.comparison import arguments, print_machine
from peers.few_clips import (
    PROBES,
    TRAININGS,
    Clips,
    embed,
    make_bundle,
    make_clips,
    make_job,
    probe,
    read_clips,
    train,
)

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import read_json, write_json
from ast_core.weights.bundle import DESCRIPTION, Bundle
from ast_core.weights.ensemble_mean import Member

METHODS = (*TRAININGS, *PROBES)
ALL = "all"
RESAMPLES = 5000
"""Resamples of the test clips for an interval."""


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the program."""
    parser = arguments(__doc__)
    parser.add_argument("audio", type=Path, nargs="?", help="folder in ESC-50's layout; by default made-up clips")
    parser.add_argument("--model", type=Path, help="pretrained bundle of one member; by default random weights")
    parser.add_argument("--output", type=Path, help="JSON file of the cells; by default none is kept")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows of the table")
    parser.add_argument("--clips-per-class", nargs="+", default=["5", "20", ALL], help="numbers, or all")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--test-fold", default="fold4", help="fold of the test clips")
    parser.add_argument("--train-folds", nargs="+", help="folds of the training clips; by default all others")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a training")
    parser.add_argument("--epoch-clips", type=int, default=480, help="clips of an epoch; fewer clips are repeated")
    parser.add_argument("--frames", type=int, default=512, help="frames of a training clip")
    parser.add_argument(
        "--probe-frames", type=int, help="frames of a window that is embedded, as --target-frames of probe"
    )
    args = parser.parse_args()
    if args.quick:
        args.clips_per_class, args.seeds, args.epochs, args.epoch_clips = ["3"], 1, 2, 32
    if not args.audio:
        args.test_fold, args.frames = "fold3", 32
    return args


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method with a number of clips per class and a seed."""

    method: str
    count: str
    seed: int

    @property
    def key(self) -> str:
        """Key of the cell in the output."""
        return f"{self.method}, {self.count} clips per class, seed {self.seed}"

    @property
    def clips_per_class(self) -> int | None:
        """Number of clips of each class; None for all."""
        return None if self.count == ALL else int(self.count)


class Output:
    """The cells that are done, in a JSON file if there is one.

    Args:
        path: file, or None.
        settings: what decides the results; the cells of other settings are refused.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        found = read_json(path, "Output") if path and path.is_file() else {"settings": settings, "cells": {}}
        if found["settings"] != settings:
            other = [key for key in settings if found["settings"].get(key) != settings[key]]
            raise SystemExit(f"{path} holds cells of other settings ({', '.join(other)}): give another --output.")
        self.cells: dict[str, dict[str, Any]] = found["cells"]

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Add a cell and write the file."""
        self.cells[cell.key] = result
        if self._path:
            write_json(self._path, {"settings": self._settings, "cells": self.cells})


class Comparison:
    """Data, pretrained model and settings that all cells share."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._args, self._scratch = args, scratch
        if args.model:
            self.pretrained = args.model
        else:
            config = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8)
            front_end = FrontEndConfig(target_frames=32, num_mel_bins=16)
            self.pretrained = make_bundle(scratch / "random", front_end, dataclasses.replace(config, init="scratch"))
        members = Bundle.load(self.pretrained).members
        if len(members) != 1:
            raise SystemExit(f"{self.pretrained} has {len(members)} members: give the bundle of one member.")
        self.member: Member = members[0]
        self._probe_frames = args.probe_frames or self.member.front_end.target_frames
        longest = dataclasses.replace(self.member.front_end, target_frames=max(args.frames, self._probe_frames))
        self.clips: Clips = read_clips(args.audio, longest) if args.audio else make_clips(longest)
        folds = sorted(set(self.clips.fold_N.tolist()))
        self.train_folds = args.train_folds or [fold for fold in folds if fold != args.test_fold]
        self.test_N = np.flatnonzero(self.clips.fold_N == args.test_fold)
        if not len(self.test_N) or args.test_fold in self.train_folds:
            raise SystemExit(f"--test-fold is {args.test_fold}: give one of {', '.join(folds)} that does not train.")
        self._embeddings: tuple[np.ndarray, float] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the results of the cells."""
        names = ("test_fold", "epochs", "epoch_clips", "frames")
        values = {name: getattr(self._args, name) for name in names}
        audio = str(self._args.audio and self._args.audio.absolute())
        data = {"audio": audio, "train_folds": self.train_folds, "clips": len(self.clips.ids)}
        model = {"model_sha256": sha256_of(self.pretrained / DESCRIPTION), "probe_frames": self._probe_frames}
        return {**values, **data, **model, "trainings": TRAININGS}

    def compute(self, cell: Cell) -> dict[str, Any]:
        """Return the result of a cell: for each test clip 1 if it is right, seconds, and numbers of clips."""
        drawn_N = self.clips.draw(self.train_folds, cell.clips_per_class, cell.seed)
        embed_s = self._embed()[1] if cell.method in PROBES else 0.0
        wall, cpu = time.monotonic(), time.process_time()
        if cell.method in PROBES:
            found = self._embed()[0]
            scores_NC = probe(cell.method, self.member, found, self.clips, drawn_N, self.test_N)
        else:
            args = self._args
            keys = TRAININGS[cell.method]
            job = make_job(self._scratch, self.pretrained, self.member, args.frames, keys, args.epochs)
            scores_NC = train(job, self.clips, drawn_N, self.test_N, cell.seed, args.epoch_clips)
        seconds = {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu, "embed_s": embed_s}
        right_N = scores_NC.argmax(axis=1) == self.clips.label_N[self.test_N]
        score = {"accuracy": float(right_N.mean()), "clips": len(drawn_N), "right": right_N.astype(int).tolist()}
        return score | seconds

    def _embed(self) -> tuple[np.ndarray, float]:
        """Return the embeddings of all clips, and the seconds that they took; they are computed once."""
        if self._embeddings is None:
            started = time.monotonic()
            found = embed(self.member, self.clips, self._probe_frames)
            self._embeddings = found, time.monotonic() - started
        return self._embeddings


def find_interval(right_SN: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy by a bootstrap over the test clips, [S seeds, N clips]."""
    mean_N = right_SN.mean(axis=0)
    drawn = np.random.default_rng(0).integers(len(mean_N), size=(RESAMPLES, len(mean_N)))
    low, high = np.quantile(mean_N[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def print_table(args: argparse.Namespace, output: Output) -> None:
    """Print the cells that are done: accuracy with interval, and CPU seconds, by method and clips per class."""
    counts = [f"{count} per class" for count in args.clips_per_class]
    print(f"| method | {' | '.join(counts)} |\n|---|{'---|' * len(counts)}")
    for method in args.methods:
        columns = []
        for count in args.clips_per_class:
            keys = [Cell(method, count, seed).key for seed in range(args.seeds)]
            done = [output.cells[key] for key in keys if key in output.cells]
            if not done:
                columns.append("")
                continue
            right_SN = np.array([own["right"] for own in done])
            low, high = find_interval(right_SN)
            seconds = np.mean([own["cpu_seconds"] for own in done])
            text = f"{right_SN.mean():.3f} ({low:.3f} to {high:.3f}), {seconds:.1f} s"
            columns.append(text + ("" if len(done) == args.seeds else f", {len(done)} of {args.seeds} seeds"))
        print(f"| {method} | {' | '.join(columns)} |")


def main() -> None:
    """Compute the missing cells and print the table."""
    args = read_arguments()
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        comparison = Comparison(args, Path(scratch))
        output = Output(args.output, comparison.settings)
        clips, test = comparison.clips, len(comparison.test_N)
        trained_on = ", ".join(comparison.train_folds)
        print(f"{len(clips.labels)} classes; training clips of {trained_on}; {test} test clips of {args.test_fold}")
        for count in args.clips_per_class:
            for method in args.methods:
                for seed in range(args.seeds):
                    cell = Cell(method, count, seed)
                    if cell.key not in output.cells:
                        output.add(cell, comparison.compute(cell))
                        own = output.cells[cell.key]
                        spent = f"{own['seconds']:.1f} s, CPU {own['cpu_seconds']:.1f} s"
                        print(f"{cell.key}: {own['accuracy']:.3f}, {own['clips']} clips, {spent}", flush=True)
        print_table(args, output)


if __name__ == "__main__":
    main()
