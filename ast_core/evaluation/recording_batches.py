"""Run a model on many recordings: decode ahead in threads, and put windows of several recordings into one batch.

Shapes: W windows, C classes.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from ast_core.audio.decoder import LIMIT_S, Decoder, Recording
from ast_core.audio.fbank import Fbank
from ast_core.audio.segments import SegmentReader
from ast_core.errors import ClipError
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, Blocks, MeasuredBlocks, Window, cut_windows
from ast_core.weights.ensemble_mean import mean_probabilities

KeyT = TypeVar("KeyT")
PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")
_ResultT_co = TypeVar("_ResultT_co", covariant=True)


@dataclass(frozen=True)
class Segment:
    """A part of a recording."""

    content: str | bytes
    """Path or content of the recording."""
    start_s: float
    end_s: float | None
    """Place in the recording where the part ends; None is its end."""
    name: Hashable
    """Name that the segments of this recording, and no others, have in common."""
    limit_s: float | None
    """Seconds of the recording that its segments need at most; None for all."""


Source = str | Path | bytes | Segment | ClipError | OSError
"""Path or content of a recording, a part of one, or why it cannot be read."""
_HELD_WINDOWS = 2 * WINDOWS_AT_ONCE
"""Windows of one recording that wait for the model at most. Longer recordings are decoded while they are scored."""
_LOOK_EVERY_S = 0.2
_ENDLESS_S = 1e9
"""Length of a segment in seconds that cuts none."""


class WindowModel(Protocol[PartT, _ResultT_co]):
    """A model on its device that makes one result of the windows of a recording."""

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The filterbank of each different front end, all of one sampling rate."""

    def cut(self, fbank: Fbank, blocks: Blocks) -> Iterator[Window]:
        """Yield the windows of a recording; a `ClipError` refuses it."""

    def run_windows(self, fbank: Fbank, windows: Sequence[Window]) -> Sequence[PartT]:
        """Return what the model makes of each window, of one recording or of many, in one batch."""

    def join(self, parts: Sequence[PartT], length_s: float) -> _ResultT_co:
        """Return the result of a recording from those of its windows, in their order, and its length in seconds."""


@dataclass(frozen=True)
class Scored:
    """The probabilities of a recording."""

    scores_C: np.ndarray
    """Mean over the windows and the members, float32 [C]."""
    length_s: float
    """Length of the recording in seconds."""


class ProbabilityModel:
    """The probabilities of a bundle as a `WindowModel`.

    Args:
        predictor: bundle on its device.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The filterbank of each different front end of the members."""
        return self._predictor.filterbanks

    def cut(self, fbank: Fbank, blocks: Blocks) -> Iterator[Window]:
        """Yield the windows of a recording, each of which starts at the end of the window before it."""
        return cut_windows(fbank, blocks, fbank.config.target_frames)

    def run_windows(self, fbank: Fbank, windows: Sequence[Window]) -> list[dict[int, np.ndarray]]:
        """Return the probabilities of each window, float32 [C], by the number of the member."""
        found: list[dict[int, np.ndarray]] = [{} for _ in windows]
        for number, scores_WC in self._predictor.score_windows(fbank.config, windows):
            for own, scores_C in zip(found, scores_WC, strict=True):
                own[number] = scores_C
        return found

    def join(self, parts: Sequence[dict[int, np.ndarray]], length_s: float) -> Scored:
        """Return the mean over windows, then over members."""
        numbers = range(len(self._predictor.bundle.members))
        means = [np.stack([own[number] for own in parts if number in own]).mean(axis=0) for number in numbers]
        return Scored(mean_probabilities(means), length_s)


@dataclass
class _Pending(Generic[KeyT, PartT]):
    """A recording whose windows are decoded or wait for the model."""

    key: KeyT
    parts: list[PartT] = field(default_factory=list)
    """What the model made of each window."""
    unscored: int = 0
    """Windows that wait for a batch."""
    length_s: float | None = None
    """Length in seconds, once the recording was decoded to its end."""
    error: ClipError | OSError | None = None


_Batches = dict[Fbank, list[tuple[_Pending[KeyT, PartT], Window]]]
"""Windows that wait for the model, by their filterbank."""


@dataclass
class _Decoding:
    """The thread's side of one recording: windows, then the length in seconds or an error."""

    source: Source
    results: queue.Queue[tuple[Fbank, Window] | float | BaseException] = field(
        default_factory=lambda: queue.Queue(_HELD_WINDOWS)
    )


@dataclass
class _OwnDecoder:
    """A decoder, and its reader of segments."""

    decoder: Decoder
    segments: SegmentReader
    limits: dict[Hashable, float]
    """Seconds of each recording that its segments need."""


class RecordingBatches(Generic[PartT, ResultT]):
    """Runs of one model on streams of recordings with a few decoders; a context that ends its threads.

    Args:
        model: model on its device.
        decoders: recordings that are decoded at the same time, each in a process of its own.
        mixed: whether a batch may hold windows of several recordings. This is faster for short recordings. Then a
            result depends on the batch by about 1e-7; otherwise it is, to the bit, that of `Predictor`.
        limit_s: seconds that a decoder may take for an answer.
    """

    def __init__(
        self, model: WindowModel[PartT, ResultT], decoders: int, mixed: bool, limit_s: float = LIMIT_S
    ) -> None:
        self._model = model
        self._rate_hz = model.filterbanks[0].config.sample_rate_hz
        self._mixed = mixed
        self._threads = ThreadPoolExecutor(decoders, "decode")
        self._ahead = decoders + 1
        self._stopped = threading.Event()
        self._decoders: queue.SimpleQueue[_OwnDecoder] = queue.SimpleQueue()
        for _ in range(decoders):
            decoder, limits = Decoder(limit_s), dict[Hashable, float]()
            self._decoders.put(_OwnDecoder(decoder, SegmentReader(decoder, self._rate_hz, limits), limits))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads and end the decoders' processes."""
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)
        while not self._decoders.empty():
            self._decoders.get().decoder.close()

    def run(self, recordings: Iterable[tuple[KeyT, Source]]) -> Iterator[tuple[KeyT, ResultT | ClipError | OSError]]:
        """Yield each recording's key with its result, in order; instead of it, with the error that it has.

        A `ClipError` is the fault of the recording, an `OSError` that of the disk or the system.

        Args:
            recordings: key and source of each recording; the sources of the next few are held in memory.
        """
        waiting: deque[_Pending[KeyT, PartT]] = deque()
        batches: _Batches[KeyT, PartT] = {own: [] for own in self._model.filterbanks}
        for key, decoding in self._decode_ahead(recordings):
            pending: _Pending[KeyT, PartT] = _Pending(key)
            waiting.append(pending)
            self._take_windows(pending, decoding, batches)
            if not self._mixed:
                self._run_all(batches)
            while waiting and not waiting[0].unscored:
                yield waiting[0].key, self._finish(waiting.popleft())
        self._run_all(batches)
        for pending in waiting:
            yield pending.key, self._finish(pending)

    def _finish(self, pending: _Pending[KeyT, PartT]) -> ResultT | ClipError | OSError:
        """Return the result of a recording, or its error."""
        if pending.error is not None:
            return pending.error
        return self._model.join(pending.parts, pending.length_s or 0.0)

    def _take_windows(
        self, pending: _Pending[KeyT, PartT], decoding: _Decoding, batches: _Batches[KeyT, PartT]
    ) -> None:
        """Put the windows of a recording into batches, and run those that are full, until the recording ends."""
        while pending.length_s is None and pending.error is None:
            result = decoding.results.get()
            if isinstance(result, tuple):
                batches[result[0]].append((pending, result[1]))
                pending.unscored += 1
                if len(batches[result[0]]) == WINDOWS_AT_ONCE:
                    self._run(result[0], batches)
            elif isinstance(result, ClipError | OSError):
                pending.error, pending.unscored = result, 0
                for fbank, batch in batches.items():
                    batches[fbank] = [own for own in batch if own[0] is not pending]
            elif isinstance(result, BaseException):
                raise result
            else:
                pending.length_s = result

    def _decode_ahead(self, recordings: Iterable[tuple[KeyT, Source]]) -> Iterator[tuple[KeyT, _Decoding]]:
        """Yield each recording while the threads decode the ones after it."""
        started: deque[tuple[KeyT, _Decoding]] = deque()
        for key, source in recordings:
            decoding = _Decoding(source)
            self._threads.submit(self._decode, decoding)
            started.append((key, decoding))
            if len(started) >= self._ahead:
                yield started.popleft()
        yield from started

    def _decode(self, decoding: _Decoding) -> None:
        """Put the windows of a recording into its queue, then its length or its error."""
        decoder = self._decoders.get()
        try:
            self._put(decoding, self._cut(decoding, decoder))
        except BaseException as error:  # noqa: BLE001  # raised again where the result is read
            self._put(decoding, error)
        finally:
            self._decoders.put(decoder)

    def _cut(self, decoding: _Decoding, own: _OwnDecoder) -> float:
        """Decode a recording, once for each front end; return its length in seconds."""
        if isinstance(decoding.source, ClipError | OSError):
            raise decoding.source
        blocks = MeasuredBlocks(self._open(decoding.source, own))
        for fbank in self._model.filterbanks:
            for window in self._model.cut(fbank, blocks):
                self._put(decoding, (fbank, window))
        return blocks.samples / self._rate_hz

    def _open(self, source: str | Path | bytes | Segment, own: _OwnDecoder) -> Iterable[np.ndarray]:
        """Return the blocks of a recording, or the samples of a part of one as a block."""
        if isinstance(source, Segment):
            if source.limit_s is None:
                own.limits.pop(source.name, None)
            else:
                own.limits[source.name] = source.limit_s
            wave_N = own.segments.load(source.content, source.start_s, source.end_s, _ENDLESS_S, source.name)
            return [wave_N]
        own.segments.close()
        content = source if isinstance(source, bytes) else None
        path = Path() if isinstance(source, bytes) else Path(source)
        return Recording(path, self._rate_hz, own.decoder, content)

    def _put(self, decoding: _Decoding, result: tuple[Fbank, Window] | float | BaseException) -> None:
        """Put a result into a queue once it has room, unless no one will read it."""
        while not self._stopped.is_set():
            try:
                decoding.results.put(result, timeout=_LOOK_EVERY_S)
            except queue.Full:
                continue
            return
        if not isinstance(result, BaseException):
            raise InterruptedError

    def _run_all(self, batches: _Batches[KeyT, PartT]) -> None:
        for fbank, batch in batches.items():
            if batch:
                self._run(fbank, batches)

    def _run(self, fbank: Fbank, batches: _Batches[KeyT, PartT]) -> None:
        """Run the model on one batch, and append what it makes of each window to the window's recording."""
        batch, batches[fbank] = batches[fbank], []
        parts = self._model.run_windows(fbank, [window for _, window in batch])
        for (pending, _), part in zip(batch, parts, strict=True):
            pending.parts.append(part)
            pending.unscored -= 1
