"""Say that this machine will be taken away, and wait until its work has left: Kubernetes calls it before it ends a pod.

python -m pipeline.ray_runtime.drain_node 80        # Ray's node of this machine, gone at the latest after 80 s
python -m pipeline.ray_runtime.drain_node 80 4711   # that one whose raylet is process 4711, where there are several
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence

import psutil
from rich.console import Console


def drain(seconds: int, raylet: psutil.Process) -> bool:
    """Tell Ray's head that the node ends in so many seconds, and wait for it.

    Trainings commit a checkpoint and leave, and go on elsewhere; tasks end; then the raylet ends by itself.

    Args:
        seconds: until the machine is taken away.
        raylet: of the node.

    Returns:
        Whether it has ended in time.
    """
    given = dict(word.removeprefix("--").split("=", 1) for word in raylet.cmdline() if "=" in word)
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", given["gcs-address"]]
    command += ["--node-id", given["node_id"], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "The machine is taken away.", "--deadline-remaining-seconds", str(seconds)]
    subprocess.run(command, check=True)  # noqa: S603  # our own words
    with contextlib.suppress(psutil.TimeoutExpired):
        raylet.wait(seconds)
    return not raylet.is_running()


def raylets() -> list[psutil.Process]:
    """Return the raylets of this machine or container."""
    return [process for process in psutil.process_iter(["name"]) if process.info["name"] == "raylet"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a program; exits 1 if it cannot tell which node is meant, or the work has not left in time."""
    words = list(sys.argv[1:] if argv is None else argv)
    found = [psutil.Process(int(words[1]))] if len(words) > 1 else raylets()
    if not found:
        return  # Ray ended before
    console = Console(stderr=True, soft_wrap=True)
    if len(found) > 1:
        console.print(f"There are several Ray nodes here; say which process: {[process.pid for process in found]}.")
        sys.exit(1)
    if not drain(int(words[0]), found[0]):
        console.print("The node's work has not left in time.")
        sys.exit(1)


if __name__ == "__main__":
    main()
