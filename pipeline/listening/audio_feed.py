"""The audio of one client on its way to the model: what arrived, in order, and the samples of it.

Shapes: N samples.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from ast_core.audio.live.opus_stream import CONTAINERS, OpusStream
from ast_core.audio.live.pcm_stream import PcmFormat, PcmStream
from ast_core.audio.waveform import Waveform
from ast_core.errors import ClipError

HELD_BLOCKS = 8
"""Blocks of samples that wait for the model at most."""
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Piece:
    """A message of audio."""

    content: bytes
    arrived_s: float
    """Time of its arrival, by the loop's clock."""


@dataclass(frozen=True)
class Block:
    """Samples at the model's rate."""

    wave_N: Waveform
    arrived_s: float
    """Arrival of the last message that they were made of."""


class WaitingAudio:
    """Messages of a client that wait for their turn.

    Args:
        most_bytes: bytes that wait at most.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pieces: deque[Piece] = deque()
        self._changed = asyncio.Condition()
        self._ended = False
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether as many bytes wait as may."""
        return self.bytes >= self._most_bytes

    async def wait_for_room(self) -> None:
        """Wait until the bytes that wait are fewer than may."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.full)

    async def put(self, piece: Piece) -> None:
        """Add a message."""
        async with self._changed:
            self._pieces.append(piece)
            self.bytes += len(piece.content)
            self._changed.notify_all()

    async def end(self) -> None:
        """Say that no message comes any more."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def get(self) -> Piece | None:
        """Wait for the next message, and return it; None after the last one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._pieces or self._ended)
            if not self._pieces:
                return None
            piece = self._pieces.popleft()
            self.bytes -= len(piece.content)
            self._changed.notify_all()
            return piece


class AudioDecoding:
    """Makes samples of the messages of one client, in threads.

    Args:
        form: `pcm_s16le`, `ogg_opus` or `webm_opus`.
        rate_hz: sampling rate of PCM.
        sample_rate_hz: rate of the model.
        threads: threads that may wait for a decoder's process.

    Raises:
        ClipError: no audio has such a rate.
    """

    def __init__(self, form: str, rate_hz: int, sample_rate_hz: int, threads: Executor) -> None:
        self._blocks: asyncio.Queue[Block | ClipError | None] = asyncio.Queue(HELD_BLOCKS)
        """The samples, and then None at the end, or why they end before it."""
        self._threads = threads
        self._opus = OpusStream(form, sample_rate_hz) if form in CONTAINERS else None
        self._pcm = PcmStream(PcmFormat(rate_hz), sample_rate_hz)
        self._places: deque[tuple[int, float]] = deque()
        """Place in the Opus stream at which each message ends, and its arrival."""

    @property
    def empty(self) -> bool:
        """Whether `take` would wait."""
        return self._blocks.empty()

    async def take(self) -> Block | None:
        """Wait for the next samples; return None at the end.

        Raises:
            ClipError: the audio after the samples so far cannot be used.
        """
        found = await self._blocks.get()
        if isinstance(found, ClipError):
            raise found
        return found

    async def run(self, waiting: WaitingAudio) -> None:
        """Decode the messages until they end, or cannot be used."""
        end = None
        try:
            await self._decode(waiting)
        except ClipError as error:
            end = error
        await self._blocks.put(end)

    def close(self) -> None:
        """End the decoder's process; this also ends the threads that wait for it."""
        if self._opus is not None:
            self._opus.close()

    async def _decode(self, waiting: WaitingAudio) -> None:
        if self._opus is None:
            await self._convert(waiting)
            return
        write = asyncio.create_task(self._write(self._opus, waiting))
        try:
            await self._read(self._opus)
        finally:
            write.cancel()

    async def _convert(self, waiting: WaitingAudio) -> None:
        arrived_s = 0.0
        while (piece := await waiting.get()) is not None:
            arrived_s = piece.arrived_s
            await self._blocks.put(Block(await self._call(self._pcm.add, piece.content), arrived_s))
        await self._blocks.put(Block(self._pcm.finish(), arrived_s))

    async def _write(self, opus: OpusStream, waiting: WaitingAudio) -> None:
        done = 0
        while (piece := await waiting.get()) is not None:
            done += len(piece.content)
            self._places.append((done, piece.arrived_s))
            await self._call(opus.write, piece.content)
        opus.end()

    async def _read(self, opus: OpusStream) -> None:
        while (block := await self._call(opus.read)) is not None:
            while len(self._places) > 1 and self._places[0][0] < block.read_bytes:
                self._places.popleft()
            await self._blocks.put(Block(block.wave_N, self._places[0][1]))

    async def _call(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        call = functools.partial(function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
