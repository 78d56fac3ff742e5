"""Predict many recordings: decode ahead in threads, and score windows of several recordings in one batch.

Shapes: W windows, C classes.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np

from ast_core.audio.decoder import LIMIT_S, Decoder, Recording
from ast_core.audio.fbank import Fbank
from ast_core.errors import ClipError
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, MeasuredBlocks, Window, cut_windows
from ast_core.weights.ensemble_mean import mean_probabilities

KeyT = TypeVar("KeyT")
Source = str | Path | bytes | ClipError | OSError
"""Path or content of a recording, or why it cannot be read."""
_HELD_WINDOWS = 2 * WINDOWS_AT_ONCE
"""Windows of one recording that wait for the model at most. Longer recordings are decoded while they are scored."""
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Scored:
    """The probabilities of a recording."""

    scores_C: np.ndarray
    """Mean over the windows and the members, float32 [C]."""
    length_s: float
    """Length of the recording in seconds."""


@dataclass
class _Pending(Generic[KeyT]):
    """A recording whose windows are decoded or scored."""

    key: KeyT
    scores: list[list[np.ndarray]]
    """Probabilities of each member, float32 [W, C], one array a batch."""
    unscored: int = 0
    """Windows that wait for a batch."""
    length_s: float | None = None
    """Length in seconds, once the recording was decoded to its end."""
    error: ClipError | OSError | None = None

    def result(self) -> Scored | ClipError | OSError:
        """Return the mean over windows and members, or the error."""
        if self.error is not None:
            return self.error
        means = [np.concatenate(rows).mean(axis=0) for rows in self.scores]
        return Scored(mean_probabilities(means), self.length_s or 0.0)


_Batches = dict[Fbank, list[tuple[_Pending[KeyT], Window]]]
"""Windows that wait for the model, by their filterbank."""


@dataclass
class _Decoding:
    """The thread's side of one recording: windows, then the length in seconds or an error."""

    source: Source
    results: queue.Queue[tuple[Fbank, Window] | float | BaseException] = field(
        default_factory=lambda: queue.Queue(_HELD_WINDOWS)
    )


class RecordingBatches:
    """Prediction of streams of recordings with one predictor and a few decoders; a context that ends its threads.

    Args:
        predictor: model on its device.
        decoders: recordings that are decoded at the same time, each in a process of its own.
        mixed: whether a batch may hold windows of several recordings. This is faster for short recordings. Then a
            probability depends on the batch by about 1e-7; otherwise it is, to the bit, that of `Predictor`.
        limit_s: seconds that a decoder may take for an answer.
    """

    def __init__(self, predictor: Predictor, decoders: int, mixed: bool, limit_s: float = LIMIT_S) -> None:
        self._predictor = predictor
        self._mixed = mixed
        self._threads = ThreadPoolExecutor(decoders, "decode")
        self._ahead = decoders + 1
        self._stopped = threading.Event()
        self._decoders: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(decoders):
            self._decoders.put(Decoder(limit_s))

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
            self._decoders.get().close()

    def predict(self, recordings: Iterable[tuple[KeyT, Source]]) -> Iterator[tuple[KeyT, Scored | ClipError | OSError]]:
        """Yield each recording's key with its probabilities, in order; instead of these, with the error that it has.

        A `ClipError` is the fault of the recording, an `OSError` that of the disk or the system.

        Args:
            recordings: key and source of each recording; the sources of the next few are held in memory.
        """
        waiting: deque[_Pending[KeyT]] = deque()
        batches: _Batches[KeyT] = {own: [] for own in self._predictor.filterbanks}
        for key, decoding in self._decode_ahead(recordings):
            pending = _Pending(key, [[] for _ in self._predictor.bundle.members])
            waiting.append(pending)
            self._take_windows(pending, decoding, batches)
            if not self._mixed:
                self._score_all(batches)
            while waiting and not waiting[0].unscored:
                yield waiting[0].key, waiting.popleft().result()
        self._score_all(batches)
        for pending in waiting:
            yield pending.key, pending.result()

    def _take_windows(self, pending: _Pending[KeyT], decoding: _Decoding, batches: _Batches[KeyT]) -> None:
        """Put the windows of a recording into batches, and score those that are full, until the recording ends."""
        while pending.length_s is None and pending.error is None:
            result = decoding.results.get()
            if isinstance(result, tuple):
                batches[result[0]].append((pending, result[1]))
                pending.unscored += 1
                if len(batches[result[0]]) == WINDOWS_AT_ONCE:
                    self._score(result[0], batches)
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

    def _cut(self, decoding: _Decoding, decoder: Decoder) -> float:
        """Decode a recording, once for each front end; return its length in seconds."""
        source = decoding.source
        if isinstance(source, ClipError | OSError):
            raise source
        rate_hz = self._predictor.bundle.front_end.sample_rate_hz
        content = source if isinstance(source, bytes) else None
        path = Path() if isinstance(source, bytes) else Path(source)
        blocks = MeasuredBlocks(Recording(path, rate_hz, decoder, content))
        for fbank in self._predictor.filterbanks:
            for window in cut_windows(fbank, blocks, fbank.config.target_frames):
                self._put(decoding, (fbank, window))
        return blocks.samples / rate_hz

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

    def _score_all(self, batches: _Batches[KeyT]) -> None:
        for fbank, batch in batches.items():
            if batch:
                self._score(fbank, batches)

    def _score(self, fbank: Fbank, batches: _Batches[KeyT]) -> None:
        """Score one batch and give each recording the rows of its windows."""
        batch, batches[fbank] = batches[fbank], []
        for number, scores_WC in self._predictor.score_windows(fbank.config, [window for _, window in batch]):
            for row, (pending, _) in enumerate(batch):
                pending.scores[number].append(scores_WC[row : row + 1])
        for pending, _ in batch:
            pending.unscored -= 1
