"""The program `prepare` with a liveness watch that takes a worker for stopped before Ray takes a node for dead."""

from __future__ import annotations

import sys
from pathlib import Path

SILENT_S = 8.0
"""More than the time between two heartbeats."""


def main() -> None:
    """Run the stage."""
    from pipeline import prepare  # noqa: PLC0415
    from pipeline.ray_runtime import liveness  # noqa: PLC0415

    liveness.SILENT_S = SILENT_S
    prepare.main()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
