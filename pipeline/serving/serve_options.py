"""Settings of a server, as its replicas get them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cli.gpu_choice import Gpus

MIB = 1 << 20


@dataclass(frozen=True)
class ServeOptions:
    """What each replica needs. All fields can be written in YAML, for Ray Serve's configuration files."""

    model: str
    """Folder or address of the model."""
    tracking: str = ""
    """MLflow tracking URI of the registry."""
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

    @property
    def max_request_bytes(self) -> int:
        """Largest body of a request in bytes."""
        return int(self.max_request_mib * MIB)
