"""Place clips without a split: a tenth of each class for the test, a tenth for validation, groups together.

The place of a clip depends on the SHA-256 of its id, or of its group, and on the other clips of its classes:

1. The hash gives each clip a number from 0 to 99. Below 10 means test, below 20 validation, anything else train.
2. For each class, rarest first, the shares are corrected in the order of the hashes: 7 to 13 % of its clips are test
   clips, as many are validation clips, and each split has one at least. Of two clips (or groups), one is for training
   and one for the test; a single one is for training.
3. Clips with several classes, and groups that span classes, may leave a class without one of the splits. Then one or
   two clips or groups move if fewer classes lack a split after that.

What is stable when clips are added, with one class a clip and no groups: a new clip moves no other clip, except where
step 2 corrected the shares of its class. There it moves at most three clips of its class, each by one place in the
order test, validation, train: no clip goes from test to train by one new clip. A class of three clips that grows to
thirty has other test clips than before. No rule that sees only the present clips can avoid this: each three clips have
a test clip, so if test clips never moved, all but two clips would be test clips.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ast_core.dataset.clips import Clip

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SHARES = ((TEST, 10), (VALIDATION, 20))
"""Splits that are held out, and the number of the hash below which a clip belongs to them by itself."""

HASH_ALONE, TENTHS_OF_CLASSES = 1, 2
"""Rules that place clips: the one of version 0.1.0, which its run folders keep, and the one described above."""
SPLIT_RULES = (HASH_ALONE, TENTHS_OF_CLASSES)
_GAP_WEIGHTS = {TRAIN: 4, TEST: 2, VALIDATION: 1}
"""How much it matters that a class lacks a split."""


def hashed_split(key: str) -> str:
    """Return the split (80, 10 and 10 %) by the hash of a clip's id alone; run folders of version 0.1.0 use it."""
    number, _ = _hash(key)
    return TEST if number < 10 else VALIDATION if number < 20 else TRAIN


def place_clips(clips: Sequence[Clip], split_rule: int = TENTHS_OF_CLASSES) -> tuple[Clip, ...]:
    """Return the clips with a split for those whose split is "".

    Clips that have a split keep it, and the other clips of their group follow them.

    Args:
        clips: all clips of a data set.
        split_rule: `TENTHS_OF_CLASSES`, or `HASH_ALONE`, which knows no groups.
    """
    if all(clip.split for clip in clips):
        return tuple(clips)
    if split_rule == HASH_ALONE:
        return tuple(clip if clip.split else replace(clip, split=hashed_split(clip.clip_id)) for clip in clips)
    units = _make_units(clips)
    by_label: dict[int, list[_Unit]] = {}
    for unit in units.values():
        for label in unit.labels:
            by_label.setdefault(label, []).append(unit)
    # Labels of one unit come last: it must not decide for the labels that it is shared with.
    rarest_first = sorted(by_label, key=lambda label: (len(by_label[label]) == 1, len(by_label[label]), label))
    for label in rarest_first:
        _place_label(label, by_label[label])
    for unit in units.values():
        unit.split = unit.split or (TEST if unit.order[0] < 10 else VALIDATION if unit.order[0] < 20 else TRAIN)
    _GapFiller(rarest_first, by_label).fill()
    return tuple(clip if clip.split else replace(clip, split=units[_key(clip)].split) for clip in clips)


@dataclass(slots=True, eq=False)
class _Unit:
    """Clips that must share a split: one clip, or a group."""

    order: tuple[int, int]
    """Number from 0 to 99 by the hash, and the hash: smaller ones are test clips first."""
    labels: dict[int, int]
    """Number of its clips with each label."""
    split: str = ""
    fixed: bool = False
    """Whether the data set itself says the split."""


def _hash(key: str) -> tuple[int, int]:
    """Return a number from 0 to 99 and the number that it came from, by the SHA-256 of a text."""
    value = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    return 99 - value % 100, value  # 99 - x: version 0.1.0 took the test clips from the end


def _key(clip: Clip) -> tuple[bool, str]:
    return (True, clip.group) if clip.group else (False, clip.clip_id)


def _make_units(clips: Iterable[Clip]) -> dict[tuple[bool, str], _Unit]:
    units: dict[tuple[bool, str], _Unit] = {}
    for clip in clips:
        key = _key(clip)
        unit = units.get(key)
        if unit is None:
            unit = units[key] = _Unit(_hash(key[1]), {})
        for label in clip.labels:
            unit.labels[label] = unit.labels.get(label, 0) + 1
        if clip.split:
            unit.split, unit.fixed = clip.split, True
    return units


def _limits(clips: int) -> tuple[int, int]:
    """Return the fewest and most test (or validation) clips of a class: a tenth, give or take a third."""
    return max(1, clips // 15), max(1, 2 * clips // 15)


def _needed(units: int) -> tuple[str, ...]:
    """Return the splits that a label of so many units must have, the most important first."""
    return (TRAIN, TEST, VALIDATION)[: min(units, 3)]


def _place_label(label: int, units: Sequence[_Unit]) -> None:
    """Place the units of one label that have no split yet."""
    low, high = _limits(sum(unit.labels[label] for unit in units))
    free = sorted((unit for unit in units if not unit.split), key=lambda unit: unit.order)
    reserve = 0 if any(unit.split == TRAIN for unit in units) else 1
    for split, number in _SHARES:
        if split not in _needed(len(units)):
            continue
        taken = sum(unit.labels[label] for unit in units if unit.split == split)
        left = len(free)
        for unit in free:
            wanted = unit.order[0] < number or taken < low
            if left > reserve and wanted and taken + unit.labels[label] <= high:
                unit.split = split
                taken += unit.labels[label]
                left -= 1
        free = [unit for unit in free if not unit.split]
        if not taken and left > reserve:  # every group is larger than the share: take the smallest one
            smallest = min(free, key=lambda unit: (unit.labels[label], unit.order))
            smallest.split = split
            free.remove(smallest)
    for unit in free:
        unit.split = TRAIN


class _GapFiller:
    """Search for labels without a split that they need, and for moves of units that leave fewer such gaps."""

    def __init__(self, labels: Sequence[int], by_label: dict[int, list[_Unit]]) -> None:
        self._labels = labels
        self._units = by_label
        self._counts = {label: Counter(unit.split for unit in by_label[label]) for label in labels}

    def fill(self) -> None:
        """Move units until no move, and no move followed by a second one, leaves fewer gaps."""
        moved = True
        while moved:
            moved = False
            for label in self._labels:
                for split in self._gaps(label):
                    moved |= self._fill(label, split)

    def _gaps(self, label: int) -> list[str]:
        return [split for split in _needed(len(self._units[label])) if not self._counts[label][split]]

    def _weight(self, labels: Iterable[int]) -> int:
        """Return the sum of the gaps of some labels; training weighs most."""
        return sum(_GAP_WEIGHTS[split] for label in labels for split in self._gaps(label))

    def _fill(self, label: int, split: str) -> bool:
        """Fill one gap if that leaves fewer gaps in all; return whether it did."""
        if self._counts[label][split]:  # a move for another gap filled it
            return False
        candidates = sorted(
            (unit for unit in self._units[label] if self._is_free(unit, label)),
            key=lambda unit: (len(unit.labels), unit.order),
        )
        for unit in candidates:
            before, old = self._weight(unit.labels), unit.split
            self._move(unit, split)
            if self._weight(unit.labels) < before or self._follow(unit, old, before):
                return True
            self._move(unit, old)
        return False

    def _follow(self, moved: _Unit, split: str, before: int) -> bool:
        """Fill the gap that a move left in `split` by a second move; return whether that leaves fewer gaps than before.

        Args:
            moved: the unit that moved.
            split: the split that it left.
            before: weight of the gaps of its labels before it moved.
        """
        for label in sorted(moved.labels):
            if split not in self._gaps(label):
                continue
            for unit in sorted(self._units[label], key=lambda unit: (len(unit.labels), unit.order)):
                if unit is moved or not self._is_free(unit, label):
                    continue
                others = [name for name in unit.labels if name not in moved.labels]
                limit, old = before + self._weight(others), unit.split
                self._move(unit, split)
                if self._weight([*moved.labels, *others]) < limit:
                    return True
                self._move(unit, old)
        return False

    def _is_free(self, unit: _Unit, gap: int) -> bool:
        """Return whether a unit may move for a label.

        Many labels of one unit each (an id among the labels) must not empty the held-out splits of the other labels.
        """
        if unit.fixed or len(self._units[gap]) > 1:
            return not unit.fixed
        return all(
            self._counts[label][unit.split] * 10 > len(self._units[label]) for label in unit.labels if label != gap
        )

    def _move(self, unit: _Unit, split: str) -> None:
        for label in unit.labels:
            self._counts[label][unit.split] -= 1
            self._counts[label][split] += 1
        unit.split = split
