"""Events in time: sounds with a beginning and an end, from the probabilities of overlapping windows.

A window of 5 s says whether a sound is somewhere in these 5 s. Its edges still locate the sound to a fraction of that:
the first window with the sound is the first one whose END lies after the onset, and the last window with the sound is
the last one whose START lies before the offset. So an event is what all windows of a run have in common (an erosion of
the run by the length of a window), and the time between two windows, the hop, limits its accuracy. The estimate of an
edge is the middle of the hop that it must lie in, so its error is at most half a hop.

Two models for which this is exact:

- A model that reports a sound as soon as a part of it is in the window. This is what training on clips with labels asks
  for, and `EventRule.overlap` is 0.
- A model whose probability is the share of the window that the sound fills. It crosses the threshold when the sound
  fills that share of the window, so `EventRule.overlap` is the threshold; the release threshold is crossed at
  `release` times that share. Sounds that fill less of a window are not found.

A model between the two starts the events late and ends them early by the time that it needs to hear of a sound;
`overlap` corrects that, too. No rule separates two sounds of a class that are closer than a window, because each window
between them has one of them: they are one event.

Windows that begin before the recording, or end after it, locate the sounds in its first and last window
(`event_windows`). Without them, a sound in the first window begins with the recording, and one in the last window ends
with it.

Shapes: W windows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ast_core.errors import require

SHORTEST = 0.1
"""Shortest event in hops: two edges in the same hop may have the same estimate."""


@dataclass(frozen=True)
class Event:
    """One sound of a class in a recording."""

    label: str
    """Name of the class."""
    start_s: float
    """Onset in seconds from the start of the recording."""
    end_s: float
    """Offset in seconds from the start of the recording."""
    peak: float
    """Highest probability of a window of the event."""


@dataclass(frozen=True)
class EventRule:
    """Rule that turns probabilities over time into events."""

    threshold: float | None = None
    """Probability at which an event of any class begins; None for the thresholds of a calibrated bundle, else 0.5."""
    release: float = 0.5
    """Share of the threshold below which an event ends. At 1 there is no hysteresis."""
    min_s: float = 0.0
    """Shortest event in seconds."""
    gap_s: float = 0.0
    """Two events of a class with a shorter gap between them are one."""
    overlap: float = 0.0
    """Share of a window that a sound fills when the probability reaches the threshold."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a value is out of its range.
        """
        require(
            self.threshold is None or 0 < self.threshold <= 1,
            f"The threshold of events is {self.threshold}; give a probability above 0 and at most 1.",
        )
        require(0 < self.release <= 1, f"The release of events is {self.release}; give a share above 0 and at most 1.")
        require(0 <= self.min_s < math.inf, f"The shortest event is {self.min_s} s; give 0 or more seconds.")
        require(0 <= self.gap_s < math.inf, f"The gap of events is {self.gap_s} s; give 0 or more seconds.")
        require(0 <= self.overlap < 1, f"The overlap of events is {self.overlap}; give a share from 0 to below 1.")


@dataclass(frozen=True)
class Windows:
    """Places of the windows of a recording, which all have the same length unless the recording cuts them."""

    starts_s: np.ndarray
    """Start of each window, float64 [W], ascending; below 0 if the window begins before the recording."""
    window_s: float
    """Length of a window that lies inside the recording."""
    length_s: float
    """Length of the recording."""

    @property
    def ends_s(self) -> np.ndarray:
        """End of each window, float64 [W]; no later than the end of the recording."""
        ends_W: np.ndarray = np.minimum(self.starts_s + self.window_s, self.length_s)
        return ends_W

    @property
    def hop_s(self) -> float:
        """Time from one window to the next; the window's length if there is only one."""
        return float(np.diff(self.starts_s).max()) if len(self.starts_s) > 1 else self.window_s

    @property
    def can_begin(self) -> np.ndarray:
        """Whether an event needs no other window, bool [W]: the recording fills at least half of this one.

        Shorter windows at the ends of a recording only locate an event. A model may know no clips as short as these.
        """
        inside_W = self.ends_s - np.maximum(self.starts_s, 0.0)
        found_W: np.ndarray = inside_W >= min(self.window_s / 2, self.length_s) - 1e-9
        return found_W


def find_events(
    windows: Windows, scores_WC: np.ndarray, labels: Sequence[str], threshold_C: np.ndarray, rule: EventRule
) -> list[Event]:
    """Return the events of a recording, the earliest first.

    Args:
        windows: places of the windows.
        scores_WC: probability of each class in each window.
        labels: names of the classes.
        threshold_C: probability at which an event of each class begins; `rule.threshold` is not used.
        rule: all other settings.
    """
    threshold_C = threshold_C.astype(scores_WC.dtype)  # a threshold may equal a score, and must include that window
    high_WC = scores_WC >= threshold_C
    begins_WC = high_WC & windows.can_begin[:, None]
    events: list[Event] = []
    for c in np.flatnonzero(begins_WC.any(axis=0)).tolist():
        low_W = high_WC[:, c] | (scores_WC[:, c] >= threshold_C[c] * rule.release)
        found = []
        for first, last in _runs(low_W):
            run = slice(first, last + 1)
            if begins_WC[run, c].any():
                onset = first + int(high_WC[run, c].argmax())
                start_s, end_s = _locate(windows, onset, last, rule)
                found.append(Event(labels[c], start_s, end_s, float(scores_WC[run, c].max())))
        events += [own for own in _join(found, rule.gap_s) if own.end_s - own.start_s >= rule.min_s]
    return sorted(events, key=lambda own: (own.start_s, own.label))


def _runs(active_W: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and the last index of each run of true values."""
    change = np.flatnonzero(np.diff(active_W.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(after) - 1) for first, after in zip(change[::2], change[1::2], strict=True)]


def _locate(windows: Windows, first: int, last: int, rule: EventRule) -> tuple[float, float]:
    """Return start and end of the event that the windows from `first` to `last` report.

    The onset lies between the ends of the window before the first one and of the first one; the offset lies between the
    starts of the last window and of the next one. The first window of a recording has no window before it, and the last
    one no window after it: then the event begins or ends with the recording.
    """
    starts_W, ends_W, overlap_s = windows.starts_s, windows.ends_s, rule.overlap * windows.window_s
    start_s, end_s = 0.0, windows.length_s
    if first > 0:
        start_s = float(ends_W[first - 1] + ends_W[first]) / 2 - overlap_s
    if last + 1 < len(starts_W):
        end_s = float(max(0.0, starts_W[last]) + max(0.0, starts_W[last + 1])) / 2 + overlap_s * rule.release
    hop_s = windows.hop_s
    if start_s > end_s + hop_s:
        # No sound that is shorter than a window is in so few windows, unless the model needs to hear more of it.
        start_s = (start_s + end_s - hop_s) / 2
        end_s = start_s + hop_s
    start_s, end_s = min(start_s, end_s), max(start_s, end_s)  # a sound within a hop: each is within half a hop still
    start_s = min(max(start_s, 0.0), windows.length_s)
    return start_s, min(max(end_s, start_s + SHORTEST * hop_s), windows.length_s)


def _join(events: Sequence[Event], gap_s: float) -> list[Event]:
    """Return the events of a class, in their order, with those joined whose gap is shorter than `gap_s`."""
    joined: list[Event] = []
    for own in events:
        before = joined[-1] if joined else None
        if before is not None and (own.start_s <= before.end_s or own.start_s - before.end_s < gap_s):
            end_s, peak = max(before.end_s, own.end_s), max(before.peak, own.peak)
            joined[-1] = replace(before, end_s=end_s, peak=peak)
        else:
            joined.append(own)
    return joined
