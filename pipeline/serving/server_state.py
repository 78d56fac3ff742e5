"""What all requests of one replica share: the models, the tokens and the limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import Protocol

from ast_core.errors import UserError
from pipeline.serving.client_tokens import TokenGate, read_tokens
from pipeline.serving.model_store import ModelStore
from pipeline.serving.refusals import overload
from pipeline.serving.request_bodies import BodyReader
from pipeline.serving.serve_options import ServeOptions
from pipeline.serving.server_metrics import DRAINING, READY, RUNNING, Counts, Key, MetricsBoard, ServerMetrics

logger = logging.getLogger("ray.serve")


BOARD_S = 2.0
"""Longest wait for the counts of the other replicas."""
WARN_AFTER = 5
SEND_S = 1.0
"""Seconds from one sending of counts to the board to the next."""


class Board(Protocol):
    """What collects the counts of all replicas; a `MetricsBoard` here or elsewhere."""

    async def exchange(self, replica: str, counts: Counts) -> Counts:
        """Store the counts of a replica, and return the sums over all replicas."""


class ServerState:
    """The state of one replica; routes find it as `request.app.state.server`.

    Args:
        options: settings of the server.
        metrics: counts of the replica.
        board: what collects the counts of all replicas; this one's only if it is None.
        behind_proxy: whether requests come through Ray Serve's proxy, which reads from clients without a limit.
    """

    def __init__(
        self, options: ServeOptions, metrics: ServerMetrics, board: Board | None = None, behind_proxy: bool = False
    ) -> None:
        self.options = options
        self.behind_proxy = behind_proxy
        self.metrics = metrics
        self.models = ModelStore(options, self._count_batch)
        self.gate = TokenGate(read_tokens(options.tokens))
        self.bodies = BodyReader(options.max_request_bytes)
        self.draining = False
        self.running = 0
        """Requests that are being answered."""
        self.live_sessions = 0
        """Sessions of `/v1/live` that are open."""
        self._board: Board = board or MetricsBoard()
        self._name = uuid.uuid4().hex
        self._alone = 0
        """Number of times in a row that the board did not answer."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether the server answers requests: its model has made a prediction, and it is not being stopped."""
        return self.models.ready and not self.draining

    async def start(self, load_first: bool) -> None:
        """Load the model and watch the registry.

        Args:
            load_first: whether to return when the model is loaded; otherwise it is loaded while the server answers
                that it is not ready.

        Raises:
            UserError: with `load_first`, the model cannot be used.
        """
        loading = asyncio.create_task(asyncio.to_thread(self.models.start))
        if load_first:
            await loading
        self._tasks += [asyncio.create_task(self._watch(loading)), asyncio.create_task(self._send_counts())]

    async def stop(self) -> None:
        """End tasks, threads and processes."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.models.close)

    @contextlib.contextmanager
    def admit(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Count a request while the context is open.

        Args:
            headers: headers of the request or WebSocket, by names in small letters.

        Raises:
            RefusedError: the server is being stopped or has too many requests, or the token is wrong.
        """
        with self.gate.admit(headers):
            if self.draining:
                raise overload("The server is being stopped; try again, another one may answer.")
            if self.running >= self.options.max_waiting:
                raise overload(f"The server has {self.running} requests already; try again in a moment.")
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1

    async def collect(self) -> Counts:
        """Return the counts of all replicas, or of this one if the board fails; drain if the board says so."""
        own = self.metrics.snapshot(self._gauges())
        try:
            found = await asyncio.wait_for(self._board.exchange(self._name, own), BOARD_S)
        except Exception as error:  # noqa: BLE001  # whatever Ray raises, the requests matter more
            self._alone += 1
            if self._alone == WARN_AFTER:  # the board starts with the first replica
                logger.warning("The counts of the other replicas are missing: %r", error)
            return own
        self._alone = 0
        self.draining = self.draining or found.get(DRAINING, 0) > 0
        return found

    def _gauges(self) -> dict[Key, float]:
        found: dict[Key, float] = {
            RUNNING: self.running,
            ("ast_serve_windows_waiting", ()): self.models.windows.waiting,
            ("ast_serve_live_sessions", ()): self.live_sessions,
            READY: float(self.ready),
        }
        if self.models.ready:
            labels = {name: str(value or "") for name, value in self.models.current.identity.items()}
            found["ast_serve_model", tuple(sorted(labels.items()))] = 1.0
        return found

    def _count_batch(self, windows: int) -> None:
        self.metrics.add("ast_serve_batches_total")
        self.metrics.add("ast_serve_windows_total", windows)

    async def _send_counts(self) -> None:
        while True:
            await self.collect()
            await asyncio.sleep(SEND_S)

    async def _watch(self, loading: asyncio.Task[None]) -> None:
        """Look for a new champion again and again."""
        try:
            await loading
        except UserError as error:
            logger.error("%s", error)  # noqa: TRY400  # a sentence for the user, no bug
            return
        while True:
            await asyncio.sleep(self.options.refresh_s)
            try:
                if await asyncio.to_thread(self.models.refresh):
                    self.metrics.add("ast_serve_takeovers_total")
            except Exception as error:  # noqa: BLE001  # whatever a new version raises, the old one serves on
                self.metrics.add("ast_serve_takeover_failures_total")
                logger.error("The registry's model was not taken over: %s", error)  # noqa: TRY400
