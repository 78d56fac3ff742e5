"""`prepare`, which takes a worker for silent long before Ray takes a node for dead; a program."""

from __future__ import annotations

import sys
from pathlib import Path

SILENT_S = 8.0
"""Longer than a worker's heartbeats are apart."""


def main() -> None:
    """Run the stage."""
    from pipeline import prepare  # noqa: PLC0415
    from pipeline.ray_runtime import heartbeat  # noqa: PLC0415

    heartbeat.SILENT_S = SILENT_S
    prepare.main()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
