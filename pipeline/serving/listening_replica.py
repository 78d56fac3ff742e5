"""A replica that listens on the server's port itself, without Ray Serve's proxy.

The proxy hands the body of each request to a replica in parts, each a call of an actor. For recordings this costs more
than to decode them, so the only replica of a server does without it. Several replicas need it: it shares the requests
out.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import uvicorn

from pipeline.cli.user_environment import complete_environment
from pipeline.serving.application import build_app
from pipeline.serving.serve_options import ServeOptions
from pipeline.serving.server_state import Board

KEEP_ALIVE_S = 75
"""Seconds that an idle connection stays open; proxies such as nginx keep theirs for 60."""


@dataclass(frozen=True)
class Listener:
    """Where a replica listens."""

    host: str
    port: int
    drain_s: float
    """Seconds that connections have to end when the replica is stopped."""

    def open(self) -> socket.socket:
        """Return a socket on the port, which a replica that is being replaced may still have; OSError if it fails."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family, backlog=2048, reuse_port=True)


class ListeningReplica:
    """The application in a uvicorn of its own, on the event loop of the replica."""

    async def __init__(self, options: ServeOptions, board: Board, listener: Listener) -> None:  # type: ignore[misc]
        complete_environment()
        self._app = build_app(options, load_first=True, board=board)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        config = uvicorn.Config(
            self._app, lifespan="off", ws="websockets-sansio", log_level="warning", access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=int(listener.drain_s),
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener.open()]))

    async def check_health(self) -> None:
        """Raise RuntimeError if the model does not compute, or nothing listens; Ray Serve then replaces the replica."""
        if not self._app.state.server.models.windows.healthy:
            raise RuntimeError("The model does not compute any more.")
        if self._serving.done():
            raise RuntimeError("The server does not listen any more.")

    async def __del__(self) -> None:
        """End the server, once its requests are answered."""
        self._server.should_exit = True
        await self._serving
        await self._lifespan.__aexit__(None, None, None)
