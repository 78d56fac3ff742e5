"""Find a sound in recordings: list when each class is probable, as CSV with a row for each event.

python examples/find_sound.py work/demo/bundles/ensemble Siren recordings/ --threshold 0.5 > found.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import ast_core

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff"}


def list_recordings(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and the recordings inside the folders."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        found += inside if path.is_dir() else [path]
    return found


def find_events(timeline: ast_core.Timeline, label: str, threshold: float) -> Iterator[tuple[float, float, float]]:
    """Yield start, end and highest probability of each run of windows in which a class is probable.

    Args:
        timeline: probabilities of overlapping windows.
        label: name of the class.
        threshold: lowest probability of a window that belongs to an event.
    """
    probabilities_W = timeline.probabilities[:, timeline.labels.index(label)]
    event: tuple[float, float, float] | None = None
    for start_s, end_s, probability in zip(timeline.starts_s, timeline.ends_s, probabilities_W, strict=True):
        if probability >= threshold:
            first_s, _, highest = event or (start_s, end_s, probability)
            event = (first_s, end_s, max(highest, probability))
        elif event:
            yield event
            event = None
    if event:
        yield event


def main(argv: Sequence[str] | None = None) -> int:
    """Print the events; return 1 if a recording could not be used, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle, a Hugging Face folder, a published .pth, hf:ORG/NAME or models:/NAME")
    parser.add_argument("label", help="name of the class")
    parser.add_argument("recordings", nargs="+", type=Path, help="audio files, or folders of them")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest probability of an event (default: 0.5)")
    parser.add_argument("--hop-s", type=float, default=1.0, help="seconds between two windows (default: 1)")
    arguments = parser.parse_args(argv)

    model = ast_core.load(arguments.model)
    if arguments.label not in model.labels:
        parser.error(f"the model has no class {arguments.label!r}; it has {', '.join(model.labels)}")
    rows = csv.writer(sys.stdout)
    rows.writerow(["path", "start_s", "end_s", "probability", "most_probable"])
    failed = 0
    for path in list_recordings(arguments.recordings):
        try:
            most_probable = next(iter(model.predict(path)))  # of the complete recording
            timeline = model.timeline(path, hop_s=arguments.hop_s)
        except ast_core.UserError as error:  # the other recordings go on
            print(error, file=sys.stderr)
            failed = 1
            continue
        for start_s, end_s, probability in find_events(timeline, arguments.label, arguments.threshold):
            rows.writerow([path, f"{start_s:.2f}", f"{end_s:.2f}", f"{probability:.3f}", most_probable])
    return failed


if __name__ == "__main__":
    sys.exit(main())
