"""Settings of a server, as its replicas get them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ast_core.errors import require
from pipeline.cli.gpu_choice import Gpus

MIB = 1 << 20
DAY_S = 86_400
_RANGES = {
    "max_request_mib": (0.001, 16_384),
    "max_seconds": (0.1, 7 * DAY_S),
    "max_waiting": (1, 100_000),
    "refresh_s": (0.1, DAY_S),
    "threads": (0, 4096),
}
"""Lowest and highest values of the settings that are numbers."""


@dataclass(frozen=True)
class ServeOptions:
    """What each replica needs. All fields can be written in YAML, for Ray Serve's configuration files."""

    model: str
    """Folder or address of the model."""
    tracking: str = ""
    """MLflow tracking URI of the registry; empty for that of `MLFLOW_TRACKING_URI` where the replica runs."""
    tokens: str = ""
    """File with the tokens of the clients; empty if no client needs one."""
    cors: tuple[str, ...] = ()
    """Origins of other web pages that may use the server."""
    gpus: Gpus = "auto"
    threads: int = 0
    """Threads of torch on a CPU; 0 for one a core."""
    max_request_mib: float = 64
    """Largest body of a request."""
    max_seconds: float = 3600
    """Longest recording."""
    max_waiting: int = 256
    """Requests that a replica holds at most; it refuses more of them."""
    refresh_s: float = 15
    """Seconds between two looks at the registry for a new champion."""

    def __post_init__(self) -> None:
        """Check the values; UserError names the wrong one."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            flag = name.replace("_", "-")
            require(least <= value <= most, f"{flag} is {value:g}; give a number from {least:g} to {most:g}.")
        for origin in self.cors:
            right = re.fullmatch(r"https?://[^/\s*]+", origin) is not None
            require(right, f"cors is {origin[:80]!r}; give an origin such as https://example.org, without a path.")

    @property
    def max_request_bytes(self) -> int:
        """Largest body of a request in bytes."""
        return int(self.max_request_mib * MIB)
