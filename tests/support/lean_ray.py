"""The program `ray` whose dashboard starts only the named parts: most of its eight have a process of their own.

python tests/support/lean_ray.py JobHead,NodeHead start --head
"""

from __future__ import annotations

import sys
from typing import Any

from ray._private import services
from ray.scripts.scripts import cli

start_process = services.start_ray_process


def start_lean(command: list[str], kind: str, *words: Any, **options: Any) -> Any:
    """Start a process of Ray; the dashboard loads the named modules only."""
    more = [f"--modules-to-load={sys.argv[1]}"] if kind == services.ray_constants.PROCESS_TYPE_DASHBOARD else []
    return start_process([*command, *more], kind, *words, **options)


if __name__ == "__main__":
    services.start_ray_process = start_lean
    cli(sys.argv[2:])
