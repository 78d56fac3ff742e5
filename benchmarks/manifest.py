"""CPU time and memory of reading and checking a list of a million clips, against a plain reader of the same format.

python benchmarks/manifest.py
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from peers.comparison import arguments, interleave, print_machine, print_medians, print_ratio, verdict
from peers.made_lists import KINDS, write_list

from ast_core.dataset.manifest import load_manifest

ROWS, ROUNDS = 1_000_000, 3
MOST_S, MOST_MIB = 15, 1024
CHILD = """
import sys, time
from pathlib import Path
from ast_core.dataset.manifest import load_manifest
started = time.process_time()
clips = len(load_manifest(Path(sys.argv[1])).clips)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(clips, time.process_time() - started, int(peak) // 1024)
"""
"""Program that reads one list, so that its peak of memory is that of a single read."""


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read rows with `csv.DictReader`, unchecked."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_segments(folder: Path) -> list[list[str]]:
    """Read the rows of AudioSet's list, unchecked."""
    with (folder / "eval_segments.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, skipinitialspace=True))


def read_lines(path: Path) -> list[object]:
    """Read each line with `json.loads`, unchecked."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


PEERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "csv": ("csv.DictReader", read_csv),
    "jsonl": ("json.loads a line", read_lines),
    "json": ("json.loads", lambda path: json.loads(path.read_text(encoding="utf-8"))),
    "parquet": ("pyarrow to_pylist", lambda path: pq.read_table(path).to_pylist()),
    "audioset": ("csv.reader", read_segments),
}


def main() -> None:
    """Time each format in turn."""
    args = arguments(__doc__).parse_args()
    rows, rounds = (1000, 1) if args.quick else (ROWS, ROUNDS)
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            source = write_list(Path(name), kind, rows)
            peer, read = PEERS[kind]
            ways = {
                peer: lambda read=read, source=source: read(source),
                "ours": lambda source=source: load_manifest(source),
            }
            seconds = interleave(ways, rounds)
            print_medians(seconds, f"CPU time of {rows} rows, {kind}")
            print_ratio(seconds, peer)
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-c", CHILD, str(source)], capture_output=True, text=True, check=True
            )
            clips, took_s, peak_mib = done.stdout.split()
            reached = float(took_s) <= MOST_S and int(peak_mib) <= MOST_MIB
            goal = f"goal {MOST_S} s and {MOST_MIB} MiB at most: {verdict(reached)}"
            print(f"{clips} clips of {kind} in {float(took_s):.1f} s, {peak_mib} MiB in all; {goal}")
    print_machine()


if __name__ == "__main__":
    main()
