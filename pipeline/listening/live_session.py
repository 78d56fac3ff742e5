"""One client of `/v1/live`: its audio goes through the model window by window, and it gets probabilities every hop."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ast_core.audio.fbank import Fbank
from ast_core.errors import ClipError
from ast_core.evaluation.live.live_windows import LiveWindow, LiveWindows
from ast_core.evaluation.prediction_table import top_classes
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, Window
from ast_core.weights.bundle import Bundle
from pipeline.listening.audio_feed import AudioDecoding, Piece, WaitingAudio

MOST_MESSAGE_BYTES = 1 << 18
"""Largest message: 8 s of PCM at 16 kHz."""
HELD_BYTES, READ_AHEAD_BYTES = 1 << 20, 1 << 26
"""Audio of a client that waits at most, if the server reads no further, and if it cannot stop reading."""
IDLE_S, SEND_S, LOOK_EVERY_S = 60.0, 20.0, 1.0
"""Longest wait for audio, and for a client to take its results; time between two looks at the server's state."""
GOING_AWAY, WRONG_DATA, AGAINST_RULES, TOO_BIG, FAILED, BUSY = 1001, 1003, 1008, 1009, 1011, 1013
"""Codes with which a WebSocket is closed (RFC 6455 and the registry of IANA)."""


class LiveError(Exception):
    """A session that cannot go on.

    Args:
        code: code with which the WebSocket is closed.
        sentence: what is wrong, and what to do.
    """

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


class ClientLeftError(Exception):
    """The client closed the WebSocket."""


class Socket(Protocol):
    """A WebSocket that was accepted."""

    async def receive(self) -> Any:
        """Return the next message of ASGI."""

    async def send_text(self, data: str) -> None:
        """Send a text message."""


class ScoringModel(Protocol):
    """A model that is served."""

    @property
    def bundle(self) -> Bundle:
        """Members, labels and settings."""

    def measure_hop(self, hop_s: float | None) -> tuple[Fbank, int]:
        """Return the filterbank of all members and a hop in samples; UserError if it cannot be."""

    def score_windows(self, windows: Sequence[Window]) -> np.ndarray:
        """Return the probabilities of windows, float32 [W, C]; it waits for them."""


@dataclass(frozen=True)
class LiveRequest:
    """What a client asks for."""

    form: str
    rate_hz: int
    hop_s: float | None
    top: int


@dataclass(frozen=True)
class LiveServer:
    """What a session needs of its server."""

    find_model: Callable[[], Awaitable[ScoringModel]]
    """Function that returns the model to use now, which may be a newer one than before."""
    is_stopping: Callable[[], bool]
    threads: Executor
    reads_ahead: bool = False
    """Whether all messages are read from the network, however many wait here, as Ray Serve's proxy does."""
    on_sound: Callable[[float], None] = lambda _: None
    """Function that is called with the seconds of each piece of sound."""
    on_lag: Callable[[float], None] = lambda _: None
    """Function that is called with the lag of each result in seconds."""


class LiveSession:
    """A session.

    Args:
        socket: the WebSocket.
        request: what the client asks for.
        server: model and threads.
    """

    def __init__(self, socket: Socket, request: LiveRequest, server: LiveServer) -> None:
        self._socket, self._request, self._server = socket, request, server
        self._waiting = WaitingAudio(READ_AHEAD_BYTES if server.reads_ahead else HELD_BYTES)
        self.windows = 0
        """Results that were sent."""

    async def run(self) -> None:
        """Answer until the client's audio ends.

        Raises:
            LiveError: the session cannot go on.
            ClientLeftError: the client closed the WebSocket.
            ClipError: the audio cannot be used.
            UserError: the model cannot be used with this hop.
        """
        model = await self._server.find_model()
        fbank, hop_samples = model.measure_hop(self._request.hop_s)
        live, rate_hz = LiveWindows(fbank, hop_samples), fbank.config.sample_rate_hz
        decoding = AudioDecoding(self._request.form, self._request.rate_hz, rate_hz, self._server.threads)
        main = asyncio.create_task(self._answer(model, live, decoding))
        tasks = {main, asyncio.create_task(self._receive()), asyncio.create_task(decoding.run(self._waiting))}
        left = tasks
        try:
            while not main.done():
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            decoding.close()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> None:
        """Read messages until the client leaves; wait while as much audio waits as may."""
        ended = False
        while True:
            message = await self._next_message(ended)
            if message["type"] == "websocket.disconnect":
                raise ClientLeftError
            content, text = message.get("bytes"), message.get("text")
            if content is None and text != "end":
                raise LiveError(WRONG_DATA, "A text message is unknown; send audio as binary messages, then `end`.")
            if ended:
                raise LiveError(WRONG_DATA, "A message came after `end`; open another WebSocket for more audio.")
            if content is None:
                ended = True
                await self._waiting.end()
                continue
            if len(content) > MOST_MESSAGE_BYTES:
                sentence = f"A message has {len(content)} bytes; send at most {MOST_MESSAGE_BYTES} in one message."
                raise LiveError(TOO_BIG, sentence)
            if self._waiting.full:
                self._require_slower()
                await self._waiting.wait_for_room()
            await self._waiting.put(Piece(content, asyncio.get_running_loop().time()))

    def _require_running(self) -> None:
        if self._server.is_stopping():
            raise LiveError(GOING_AWAY, "The server is being stopped; connect again.")

    def _require_slower(self) -> None:
        """Raise LiveError if messages come whether or not there is room for them."""
        if self._server.reads_ahead:
            mib = READ_AHEAD_BYTES >> 20
            sentence = f"{mib} MiB of audio wait for the model; send no faster than results come."
            raise LiveError(AGAINST_RULES, sentence)

    async def _next_message(self, ended: bool) -> Any:
        """Return the next message; LiveError if none comes for long, or the server is being stopped."""
        self._require_running()
        receiving, waited_s = asyncio.ensure_future(self._socket.receive()), 0.0
        try:
            while not (await asyncio.wait({receiving}, timeout=LOOK_EVERY_S))[0]:
                waited_s += LOOK_EVERY_S
                self._require_running()
                if waited_s >= IDLE_S and not ended:
                    raise LiveError(AGAINST_RULES, f"No audio came for {IDLE_S:g} s; connect again, or send silence.")
            return receiving.result()
        finally:
            receiving.cancel()

    async def _answer(self, model: ScoringModel, live: LiveWindows, decoding: AudioDecoding) -> None:
        """Send the probabilities of each window, also of those before audio that cannot be used."""
        ready: list[tuple[LiveWindow, float]] = []
        arrived_s = 0.0
        try:
            while (block := await decoding.take()) is not None:
                arrived_s = block.arrived_s
                live.add(block.wave_N)
                self._server.on_sound(len(block.wave_N) / model.bundle.front_end.sample_rate_hz)
                while live.ready:
                    ready += [(own, arrived_s) for own in await self._call(live.cut, WINDOWS_AT_ONCE - len(ready))]
                    if len(ready) == WINDOWS_AT_ONCE:
                        model, ready = await self._score(model, ready), []
                if decoding.empty:
                    model, ready = await self._score(model, ready), []
        except ClipError:
            await self._score(model, ready)
            raise
        if (last := await self._call(live.finish)) is not None:
            ready.append((last, arrived_s))
        await self._score(model, ready)
        seconds = live.samples / model.bundle.front_end.sample_rate_hz
        await self._send({"end": True, "seconds": seconds, "windows": self.windows})

    async def _score(self, model: ScoringModel, ready: Sequence[tuple[LiveWindow, float]]) -> ScoringModel:
        """Send the probabilities of windows in one batch, and return the model that made them."""
        if not ready:
            return model
        now = await self._server.find_model()
        if now.bundle.front_end != model.bundle.front_end or now.bundle.labels != model.bundle.labels:
            raise LiveError(GOING_AWAY, "Another model with other classes or windows is served now; connect again.")
        scores_WC = await self._call(now.score_windows, [own.window for own, _ in ready])
        for (own, arrived_s), scores_C in zip(ready, scores_WC, strict=True):
            lag_s = asyncio.get_running_loop().time() - arrived_s
            self._server.on_lag(lag_s)
            await self._send(describe_window(own, scores_C, now.bundle.labels, self._request.top, lag_s))
            self.windows += 1
        return now

    async def _send(self, value: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await self._socket.send_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
        except TimeoutError:
            raise LiveError(AGAINST_RULES, f"The results were not read for {SEND_S:g} s.") from None

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        call = functools.partial(function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._server.threads, call)


def describe_window(
    own: LiveWindow, scores_C: np.ndarray, labels: Sequence[str], top: int, lag_s: float
) -> dict[str, Any]:
    """Return the message about a window.

    Args:
        own: the window.
        scores_C: its probabilities, float32 [C].
        labels: names of the classes.
        top: number of classes to name.
        lag_s: seconds since the window's last sample arrived.
    """
    found = {labels[c]: float(scores_C[c]) for c in top_classes(scores_C, min(top, len(labels)))}
    times = {"start_s": round(own.start_s, 4), "end_s": round(own.end_s, 4)}
    return {**times, "probabilities": found, "lag_s": round(lag_s, 4)}
