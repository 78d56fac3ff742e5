"""Match files with the rows of AudioSet's lists by the many names that downloaders give them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ast_core.dataset.audio_suffixes import has_audio_suffix, suffix_rank

NO_ROW = "audio, but named by no row of the lists"
_OTHER_TIME = "named by the ID of a row, but with other times"
_FURTHER = "further files of a row that has a better one"
_SHARED = "shared by several rows of one ID, whose times their names do not say"
_NUMBER = r"(\d{1,9}(?:\.\d{1,6})?)"
_START = re.compile(rf"(.+)_{_NUMBER}", re.DOTALL)
_START_END = re.compile(rf"(.+)_{_NUMBER}[_-]{_NUMBER}", re.DOTALL)
_SLACK_S = 0.0006
"""Largest difference of two times that are written with three decimals."""
_NO_MATCH, _ID_ONLY = 9, 4
"""Ranks of a name that does not fit a row, and of one that says no times. A lower rank fits better."""


class Segment(NamedTuple):
    """One row of a segments CSV."""

    ytid: str
    start_s: float
    end_s: float
    labels: tuple[int, ...]
    split: str

    @property
    def clip_id(self) -> str:
        """ID_START, with the start in seconds."""
        return f"{self.ytid}_" + f"{self.start_s:.3f}".rstrip("0").rstrip(".")


class SegmentFiles:
    """The file of each segment of AudioSet's lists, and the files that are no segment's.

    A file may be named ID, ID_START, ID_START_END or ID_START-END, with `Y` before it and any suffix. Times are in
    seconds (30, 30.0, 30.000, VGGSound's 000030; fractions may be cut) or in milliseconds (30000). Of several files for
    a row, this one is taken: the one whose name says more (start and end, start, ID); then the one without `Y`; then
    the one below a folder that is named as the row's split; then the one whose suffix comes first in `AUDIO_SUFFIXES`;
    then the first by path.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self.files = [""] * len(segments)
        """Path of the file of each segment; "" if it has none."""
        self._ranks = bytearray([_NO_MATCH]) * len(segments)
        self._rows: dict[str, int | list[int]] = {}  # a list for each of two million IDs would take 100 MB
        for number, segment in enumerate(segments):
            before = self._rows.setdefault(segment.ytid, number)
            if isinstance(before, list):
                before.append(number)
            elif before != number:
                self._rows[segment.ytid] = [before, number]
        self._losers: list[str] = []
        self._other_times: list[str] = []

    def add(self, path: str) -> None:
        """Match one audio file."""
        known = False
        for ytid, times in _read_names(path.rpartition("/")[2]):
            numbers = self._rows.get(ytid)
            if numbers is None:
                continue
            known = True
            numbers = [numbers] if isinstance(numbers, int) else numbers
            fits = [self._offer(path, number, _rank(times, self._segments[number])) for number in numbers]
            if any(fits):
                return
        if known:
            self._other_times.append(path)

    def _offer(self, path: str, number: int, rank: int) -> bool:
        """Give a file to a segment if its name fits and no other file fits better; return whether it fits."""
        if rank == _NO_MATCH:
            return False
        old, segment = self.files[number], self._segments[number]
        if old and (self._ranks[number], *_order(old, segment)) <= (rank, *_order(path, segment)):
            self._losers.append(path)
            return True
        if old:
            self._losers.append(old)
        self.files[number], self._ranks[number] = path, rank
        return True

    def others(self) -> Iterator[tuple[str, str]]:
        """Yield reason and path of each file that is known, but not or not only the file of one segment."""
        used = set(self.files)
        yield from ((_FURTHER, path) for path in sorted(set(self._losers) - used))
        yield from ((_OTHER_TIME, path) for path in self._other_times)
        seen, shared = set[str](), set[str]()
        for path, rank in zip(self.files, self._ranks, strict=True):
            if rank == _ID_ONLY:
                (shared if path in seen else seen).add(path)
        yield from ((_SHARED, path) for path in sorted(shared))


def _read_names(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the IDs that a file's name may mean, each with the times that follow it, the longest times first.

    IDs may contain '_' and '-', begin with them, and begin with Y or end in digits; only the rows say which it is.
    """
    stem = name[: name.rfind(".")] if has_audio_suffix(name) else name
    found: list[tuple[str, tuple[str, ...]]] = []
    if "_" in stem:
        both, one = _START_END.fullmatch(stem), _START.fullmatch(stem)
        if both:
            found.append((both[1], (both[2], both[3])))
        if one:
            found.append((one[1], (one[2],)))
    found.append((stem, ()))
    for ytid, times in found:
        yield ytid, times
    for ytid, times in found:
        if ytid[0] == "Y" and len(ytid) > 1:
            yield ytid[1:], times


def _rank(times: tuple[str, ...], segment: Segment) -> int:
    """Return how well the times of a name fit a segment; the lowest is the best."""
    if not times:
        return _ID_ONLY
    faults = [_fault(text, value) for text, value in zip(times, (segment.start_s, segment.end_s), strict=False)]
    if max(faults) == _NO_MATCH:
        return _NO_MATCH
    return 2 * (2 - len(times)) + max(faults)


def _fault(text: str, seconds: float) -> int:
    """Return 0 if a text says a time, in seconds or milliseconds, 1 if it says it without its fraction."""
    if "." in text:
        return 0 if abs(float(text) - seconds) < _SLACK_S else _NO_MATCH
    number = int(text)
    if number in (seconds, round(seconds * 1000)):
        return 0
    return 1 if number in (math.floor(seconds), math.ceil(seconds)) else _NO_MATCH


def _order(path: str, segment: Segment) -> tuple[bool, bool, int, str]:
    *folders, name = path.split("/")
    elsewhere = segment.split not in folders and f"{segment.split}_segments" not in folders
    return name.startswith(f"Y{segment.ytid}"), elsewhere, suffix_rank(path), path
