"""Events that are found in a recording of ten minutes, next to the sounds that were mixed into it.

python benchmarks/events.py [--model BUNDLE] [--audio FOLDER_OF_CLASS_FOLDERS] [--hop-s 0.5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peers.comparison import arguments, one_core, print_machine, verdict
from peers.soundscape import RATE_HZ, Draw, generated_sounds, mix_recording, recorded_sounds, train_bundle

from ast_core.evaluation.event_windows import cut_with_edges, detect_events
from ast_core.evaluation.events import Event, EventRule, Windows, find_events
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle

SECONDS, WINDOWS, EPOCHS = 600.0, 4000, 10
GOAL_HOPS = 0.5
"""Largest error of an edge if the model's answers are exact."""


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the program."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="bundle to use; by default a small one is trained")
    parser.add_argument("--save", type=Path, help="folder to keep the trained bundle in")
    parser.add_argument("--audio", type=Path, help="folder of class folders to use instead of generated sounds")
    parser.add_argument("--window-s", type=float, default=2.0, help="window of the trained model in seconds")
    parser.add_argument("--hop-s", type=float, default=0.25, help="seconds between windows")
    parser.add_argument("--threshold", type=float, help="threshold of all classes; by default the model's, else 0.5")
    parser.add_argument("--release", type=float, default=EventRule.release, help="share of the threshold at the end")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of a window that the model needs to hear")
    parser.add_argument("--min-s", type=float, default=0.0, help="shortest event in seconds")
    parser.add_argument("--tolerance-s", type=float, default=0.5, help="largest onset error of an event that is found")
    parser.add_argument("--seed", type=int, default=1, help="seed of the recording")
    return parser.parse_args()


def match(found: Sequence[Event], mixed: Sequence[Event], tolerance_s: float) -> list[tuple[Event, Event]]:
    """Return pairs of a found event and a sound of its class, the nearest onsets first; each is in one pair at most."""
    pairs = [(abs(own.start_s - true.start_s), f, t) for f, own in enumerate(found) for t, true in enumerate(mixed)
             if own.label == true.label and abs(own.start_s - true.start_s) <= tolerance_s]  # fmt: skip
    used_f: set[int] = set()
    used_t: set[int] = set()
    matched = []
    for _, f, t in sorted(pairs):
        if f not in used_f and t not in used_t:
            used_f.add(f)
            used_t.add(t)
            matched.append((found[f], mixed[t]))
    return matched


def answer_exactly(windows: Windows, mixed: Sequence[Event], labels: Sequence[str]) -> np.ndarray:
    """Return the probabilities of a model that hears every part of a sound: 1 if it is in the window, else 0."""
    scores_WC = np.zeros((len(windows.starts_s), len(labels)), np.float32)
    for own in mixed:
        inside_W = (windows.starts_s < own.end_s) & (windows.ends_s > own.start_s)
        scores_WC[inside_W, labels.index(own.label)] = 1
    return scores_WC


def print_classes(found: Sequence[Event], mixed: Sequence[Event], pairs: Sequence[tuple[Event, Event]]) -> None:
    """Print precision and recall of each class, and of all."""
    names = sorted({own.label for own in mixed} | {own.label for own in found})
    width = max(map(len, [*names, "all classes"]))
    for name in [*names, "all classes"]:
        right, ours, true = (
            sum(name in (own.label, "all classes") for own in events)
            for events in ([own for own, _ in pairs], found, mixed)
        )
        print(f"{name:{width}}  {true:3d} mixed in, {ours:3d} found: ", end="")
        print(f"precision {right / max(1, ours):.2f}, recall {right / max(1, true):.2f}")


def print_errors(name: str, pairs: Sequence[tuple[Event, Event]], hop_s: float) -> float:
    """Print the errors of the edges in hops, and return the largest."""
    largest = 0.0
    for edge in ("start_s", "end_s"):
        error = np.array([getattr(own, edge) - getattr(true, edge) for own, true in pairs]) / hop_s
        if len(error):
            size = np.abs(error)
            print(
                f"{name}, {edge}: error median {np.median(size):.2f}, 90 % below {np.quantile(size, 0.9):.2f}, largest "
                f"{size.max():.2f} hops; middle {np.median(error):+.2f} hops (late is positive); {len(error)} events"
            )
            largest = max(largest, float(size.max()))
    return largest


def load_predictor(args: argparse.Namespace, sounds: dict[str, Draw]) -> Predictor:
    """Return the model to use, which is trained if no bundle is given."""
    if args.model:
        return Predictor(Bundle.load(args.model))
    with tempfile.TemporaryDirectory() as name:
        folder = args.save or Path(name) / "bundle"
        size = (64, 1) if args.quick else (WINDOWS, EPOCHS)
        started = time.monotonic()
        train_bundle(folder, sounds, args.window_s, *size)
        print(
            f"trained on {size[0]} windows of {args.window_s} s, {size[1]} epochs, {time.monotonic() - started:.0f} s"
        )
        return Predictor(Bundle.load(folder))


def main() -> None:
    """Print what was found of what was mixed in, and how exact the times are."""
    args = read_arguments()
    one_core()
    train, test = (recorded_sounds(args.audio, part) if args.audio else generated_sounds() for part in (0, 1))
    predictor = load_predictor(args, train)
    bundle = predictor.bundle
    window_s, rate_hz = bundle.front_end.clip_s, bundle.front_end.sample_rate_hz
    if rate_hz != RATE_HZ or not set(test) <= set(bundle.labels):
        raise SystemExit(f"{args.model} must have the rate {RATE_HZ} Hz and the classes {', '.join(test)}.")
    seconds = 30.0 if args.quick else SECONDS
    wave_N, mixed = mix_recording(test, seconds, window_s + 2 * args.hop_s, args.seed)
    rule = EventRule(args.threshold, args.release, args.min_s, overlap=args.overlap)
    started = time.monotonic()
    found = detect_events(predictor, wave_N, args.hop_s, rule)
    print(f"{seconds:.0f} s of audio, windows of {window_s} s every {args.hop_s} s: {time.monotonic() - started:.1f} s")
    pairs = match(found, mixed, args.tolerance_s)
    print_classes(found, mixed, pairs)
    print_errors("this model", pairs, args.hop_s)

    fbank, hop_samples = predictor.measure_hop(args.hop_s)
    starts = [start for start, _ in cut_with_edges(fbank, [wave_N], hop_samples)]
    windows = Windows(np.array(starts) / rate_hz, window_s, len(wave_N) / rate_hz)
    exact_WC = answer_exactly(windows, mixed, bundle.labels)
    exact = find_events(windows, exact_WC, bundle.labels, np.full(len(bundle.labels), 0.5), EventRule())
    pairs = match(exact, mixed, args.hop_s)
    largest = print_errors("a model with exact answers", pairs, args.hop_s)
    complete = len(pairs) == len(mixed) == len(exact)
    print(
        f"ratio {largest:.3g}: largest error of exact answers in hops, {len(pairs)} of {len(mixed)} sounds found; goal "
        f"{GOAL_HOPS:g} for all: {verdict(complete and largest <= GOAL_HOPS + 1e-6)}"
    )
    print_machine()


if __name__ == "__main__":
    main()
