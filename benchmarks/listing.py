"""Time and memory of listing Parquet files or tar archives that hold the recordings, like the copies of AudioSet.

python benchmarks/listing.py --rows 2000000
python benchmarks/listing.py --rows 2000000 --kind tar
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from peers.comparison import arguments, print_machine, verdict
from peers.made_parquet import write_parquet_copy
from peers.made_tars import write_tar_copy

ROWS, QUICK_ROWS = 100_000, 2_000
AUDIOSET_ROWS = 2_084_320
"""Segments of AudioSet's lists."""
MOST_MIB = 1536
WRITERS = {"parquet": write_parquet_copy, "tar": write_tar_copy}
CHILD = """
import sys, time
from ast_core.dataset.manifest import load_manifest
started, used = time.monotonic(), time.process_time()
manifest = load_manifest(sys.argv[1])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
seconds = time.monotonic() - started, time.process_time() - used
print(len(manifest.clips), len(manifest.labels), *seconds, int(peak) // 1024)
"""
"""Program that lists one source, so that its peak of memory is that of a single listing."""


def main() -> None:
    """Make the files, list them in a process of its own, and print the figures."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="number of recordings to make and list")
    parser.add_argument("--kind", choices=WRITERS, default="parquet", help="kind of the files")
    parser.add_argument("--folder", type=Path, help="folder of the made files, which stay; the default is temporary")
    args = parser.parse_args()
    rows = QUICK_ROWS if args.quick else args.rows
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        files = WRITERS[args.kind](folder, rows)
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=True
        )
    clips, labels, wall_s, cpu_s, peak_mib = done.stdout.split()
    million_s = float(cpu_s) / int(clips) * 1e6
    print(
        f"{clips} clips with {labels} classes in {files} {args.kind} files listed in {float(wall_s):.1f} s "
        f"({float(cpu_s):.1f} s of CPU, {million_s:.1f} s a million), peak {peak_mib} MiB; "
        f"goal {MOST_MIB} MiB at most: {verdict(int(peak_mib) <= MOST_MIB)}"
    )
    print(f"projected for the {AUDIOSET_ROWS} recordings of AudioSet: {million_s * AUDIOSET_ROWS / 1e6:.0f} s of CPU")
    print_machine()


if __name__ == "__main__":
    main()
