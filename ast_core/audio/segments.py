"""Read segments of long recordings: those of one recording, in order, with one decoding of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Iterator, Mapping

import numpy as np

from ast_core.audio.decoder import Decoder
from ast_core.audio.waveform import Waveform
from ast_core.errors import ClipError

ROUNDING_S = 0.1
"""Largest time by which a segment may end after its recording: lists round, and lossy formats cut or pad the end."""


class SegmentReader:
    """A reader of one segment after another; the samples are those of the complete recording's waveform.

    A recording is decoded again only if a segment starts before the one that was read last.

    Args:
        decoder: decoder, which must read nothing else between two segments unless `close` was called.
        sample_rate_hz: sampling rate of the segments.
        limits: seconds of each recording that are decoded at most, by name.
    """

    def __init__(self, decoder: Decoder, sample_rate_hz: int, limits: Mapping[Hashable, float]) -> None:
        self._decoder = decoder
        self._rate_hz = sample_rate_hz
        self._limits = limits
        self._name: Hashable = ""
        self._blocks: Iterator[Waveform] = iter(())
        self._held = np.empty(0, np.float32)
        self._place = 0
        """Place of the first held sample in the recording."""
        self._furthest = 0
        """Number of samples that were decoded of the recording so far."""
        self._length: int | None = None
        """Number of samples of the recording, or of its part within the limit; None before its end was reached."""

    def load(
        self, source: str | bytes, start_s: float, end_s: float | None, max_seconds: float, name: Hashable = ""
    ) -> Waveform:
        """Return the samples of a segment, float32 [N], at most `max_seconds` of it.

        Args:
            source: path or content of the recording.
            start_s: beginning of the segment.
            end_s: end of the segment; None is the end of the recording.
            max_seconds: largest length of the result.
            name: what the segments of this recording, and no others, have in common; by default its path.

        Raises:
            ClipError: stage `segment` if the recording ends before the segment; otherwise as `Decoder.load`.
            OSError: the fault of the disk or the system, not of the file.
        """
        first = round(start_s * self._rate_hz)
        end = None if end_s is None else round(end_s * self._rate_hz)
        last = first + math.ceil(max_seconds * self._rate_hz)
        last = last if end is None else min(last, end)
        name = name or source
        if name != self._name or first < self._place:
            self._open(source, name)
        self._read_to(last, keep_from=first)
        segment = self._held[max(0, first - self._place) : max(0, last - self._place)].copy()
        if end is not None and self._length is None and end > self._furthest:
            self._read_to(end, keep_from=end)
        if self._length is not None:
            recording_s = self._length / self._rate_hz
            if end_s is not None and end_s > recording_s + ROUNDING_S:
                raise ClipError("segment", f"the segment ends at {end_s:g} s, the recording at {recording_s:g} s")
            if first >= self._length:
                raise ClipError(
                    "segment", f"the segment starts at {start_s:g} s, the recording ends at {recording_s:g} s"
                )
        return segment

    def close(self) -> None:
        """Finish the decoding of the present recording."""
        with contextlib.suppress(ClipError):
            for _ in self._blocks:
                pass
        self._name, self._blocks, self._held = "", iter(()), np.empty(0, np.float32)

    def _open(self, source: str | bytes, name: Hashable) -> None:
        known = (self._furthest, self._length) if name == self._name else (0, None)
        self.close()
        self._name, self._place, (self._furthest, self._length) = name, 0, known
        self._blocks = self._decoder.blocks(source, self._rate_hz, self._limits.get(name))

    def _read_to(self, end: int, keep_from: int) -> None:
        """Decode until the sample `end`, or to the end of the recording, and hold the samples from `keep_from` on."""
        parts = [self._held]
        place, position = self._place, self._place + len(self._held)
        try:
            while position < end:
                block = next(self._blocks, None)
                if block is None:
                    self._length = position
                    break
                position += len(block)
                while parts and place + len(parts[0]) <= keep_from:
                    place += len(parts.pop(0))
                parts.append(block)
        except BaseException:
            self._name = ""  # a later segment decodes the recording from its beginning
            raise
        held = np.concatenate(parts)
        drop = min(max(0, keep_from - place), len(held))
        self._held, self._place = held[drop:], place + drop
        self._furthest = max(self._furthest, position)
