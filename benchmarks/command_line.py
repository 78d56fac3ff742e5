"""CPU time of `ast-pipeline --help` and `ast-pipeline train --help` against that of `import torch`.

python benchmarks/command_line.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from peers.comparison import arguments, interleave, print_machine, print_medians, print_ratio

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, GOAL = 9, 2.0
PROGRAM = "import sys; from pipeline.cli.main import main; main(sys.argv[1:])"


def children_cpu_s() -> float:
    """Return the CPU time of all child processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start_python(code: str, *words: str) -> Callable[[], object]:
    """Return a function that runs Python code in a new process."""
    command = [sys.executable, "-c", code, *words]
    return lambda: subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def main() -> None:
    """Measure and print."""
    quick = arguments(__doc__).parse_args().quick
    ways = {
        "import torch": start_python("import torch"),
        "--help": start_python(PROGRAM, "--help"),
        "train --help": start_python(PROGRAM, "train", "--help"),
    }
    seconds = interleave(ways, 1 if quick else ROUNDS, clock=children_cpu_s, warm=quick)
    print_medians(seconds, "CPU time of a process")
    for name in ("--help", "train --help"):
        print_ratio(seconds, peer="import torch", ours=name, goal=GOAL)
    print_machine()


if __name__ == "__main__":
    main()
