"""What all requests of one replica share: the models, the tokens and the limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping

from ast_core.errors import UserError
from pipeline.serving.client_tokens import TokenGate, read_tokens
from pipeline.serving.model_store import ModelStore
from pipeline.serving.refusals import overload
from pipeline.serving.request_bodies import BodyReader
from pipeline.serving.serve_options import ServeOptions

logger = logging.getLogger("ray.serve")


class ServerState:
    """The state of one replica; routes find it as `request.app.state.server`.

    Args:
        options: settings of the server.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.models = ModelStore(options)
        self.gate = TokenGate(read_tokens(options.tokens))
        self.bodies = BodyReader(options.max_request_bytes)
        self.draining = False
        self.running = 0
        """Requests that are being answered."""
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
        self._tasks.append(asyncio.create_task(self._watch(loading)))

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
                await asyncio.to_thread(self.models.refresh)
            except Exception as error:  # noqa: BLE001  # whatever a new version raises, the old one serves on
                logger.error("The registry's model was not taken over: %s", error)  # noqa: TRY400
