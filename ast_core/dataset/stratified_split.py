"""Place clips without a split: a tenth of each class for the test, a tenth for validation, groups together.

The place of a clip depends on the SHA-256 of its id, or of its group, and on the other clips of its classes:

1. The hash gives each clip a number from 0 to 99. Below 10 means test, below 20 validation, anything else train.
2. For each class, rarest first, the shares are corrected in the order of the hashes: 7 to 13 % of its clips are test
   clips, as many are validation clips, and each split has one at least. Of two clips (or groups), one is for training
   and one for the test; a single one is for training.
3. Clips with several classes, and groups that span classes, may leave a class without one of the splits. Then one or
   two clips or groups move if fewer classes lack a split after that.

Clips of one file without a group are a group.

What is stable when clips are added, with one class a clip and no groups: a new clip moves no other clip, except where
step 2 corrected the shares of its class. There it moves at most three clips of its class, each by one place in the
order test, validation, train: no clip goes from test to train by one new clip. A class of three clips that grows to
thirty has other test clips than before. No rule that sees only the present clips can avoid this: each three clips have
a test clip, so if test clips never moved, all but two clips would be test clips.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.problems import Problems, canonical_name, shorten
from ast_core.errors import UserError, require

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SHARES = ((TEST, 10), (VALIDATION, 20))
"""Splits that are held out, and the number of the hash below which a clip belongs to them by itself."""

HASH_ALONE, TENTHS_OF_CLASSES = 1, 2
"""Rules that place clips: the one of version 0.1.0, which its run folders keep, and the one described above."""
GROUPED_LAYOUTS = ("folders", "manifest", "parquet", "webdataset")
"""Layouts of one's own data. The other layouts come with published splits."""
SPLIT_RULES = (HASH_ALONE, TENTHS_OF_CLASSES)
_GAP_WEIGHTS = {TRAIN: 4, TEST: 2, VALIDATION: 1}
"""How much it matters that a class lacks a split."""


def hashed_split(key: str) -> str:
    """Return the split (80, 10 and 10 %) by the hash of a clip's id alone; run folders of version 0.1.0 use it."""
    number, _ = _hash(key)
    return TEST if number < 10 else VALIDATION if number < 20 else TRAIN


def place_clips(clips: Sequence[Clip], split_rule: int = TENTHS_OF_CLASSES) -> tuple[Clip, ...]:
    """Return the clips with a split for those whose split is "".

    Clips that have a split keep it, and the other clips of their group or file follow them.

    Args:
        clips: all clips of a data set.
        split_rule: `TENTHS_OF_CLASSES`, or `HASH_ALONE`, which knows no groups.
    """
    if all(clip.split for clip in clips):
        return tuple(clips)
    if split_rule == HASH_ALONE:
        return tuple(clip if clip.split else replace(clip, split=hashed_split(clip.clip_id)) for clip in clips)
    own = _make_units(clips)
    units = list(dict.fromkeys(own))
    by_label: dict[int, list[_Unit]] = {}
    for unit in units:
        for label in unit.labels:
            by_label.setdefault(label, []).append(unit)
    # Labels of one unit come last: it must not decide for the labels that it is shared with.
    rarest_first = sorted(by_label, key=lambda label: (len(by_label[label]) == 1, len(by_label[label]), label))
    for label in rarest_first:
        _place_label(label, by_label[label])
    for unit in units:
        unit.split = unit.split or (TEST if unit.order[0] < 10 else VALIDATION if unit.order[0] < 20 else TRAIN)
    _GapFiller(rarest_first, by_label).fill()
    # `dataclasses.replace` would take five times as long.
    return tuple(
        clip
        if clip.split
        else Clip(clip.clip_id, clip.path, clip.labels, unit.split, clip.start_s, clip.end_s, clip.group, clip.member)
        for clip, unit in zip(clips, own, strict=True)
    )


@dataclass(slots=True, eq=False)
class _Unit:
    """Clips that must share a split: one clip, those of one file, or a group."""

    order: tuple[int, int, str]
    """Number from 0 to 99 by the hash, the hash, and the name: smaller ones are test clips first."""
    labels: dict[int, int]
    """Number of its clips with each label."""
    split: str = ""
    fixed: bool = False
    """Whether the data set itself says the split."""


def _hash(key: str) -> tuple[int, int]:
    """Return a number from 0 to 99 and the number that it came from, by the SHA-256 of a text."""
    value = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    return 99 - value % 100, value  # 99 - x: version 0.1.0 took the test clips from the end


def _make_units(clips: Sequence[Clip]) -> list[_Unit]:
    """Return the unit of each clip: that of its group, else of its file if clips share it, else its own."""
    files = Counter(clip.path for clip in clips if clip.path and clip.member is None)
    shared: dict[tuple[str, str], _Unit] = {}
    units = []
    for clip in clips:
        if clip.group:
            key = ("group", clip.group)
        elif clip.path and clip.member is None and (files[clip.path] > 1 or clip.is_segment):
            key = ("file", clip.path)
        else:
            split = clip.split
            unit = _Unit((*_hash(clip.clip_id), clip.clip_id), dict.fromkeys(clip.labels, 1), split, bool(split))
            units.append(unit)
            continue
        known = shared.get(key)
        if known is None:
            # A file's name without folders, because a data set that moves keeps its splits.
            name = key[1].rpartition("/")[2] if key[0] == "file" else key[1]
            known = shared[key] = _Unit((*_hash(name), key[1]), {})
        for label in clip.labels:
            known.labels[label] = known.labels.get(label, 0) + 1
        if clip.split:
            known.split, known.fixed = clip.split, True
        units.append(known)
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


def read_group(cell: object) -> str:
    """Return the group of a table's cell; "" if the cell is empty. ValueError says what is wrong with it.

    Names that differ only in case, spaces or Unicode form are one group: two spellings of a speaker must not be in two
    splits.
    """
    if isinstance(cell, float):  # pandas writes a column of whole numbers with gaps as floats
        cell = "" if math.isnan(cell) else int(cell) if cell.is_integer() else cell
    if cell is not None and (isinstance(cell, bool) or not isinstance(cell, str | int | float)):
        raise ValueError(f"the group is {shorten(str(cell))}; give a text or a number")
    return "" if cell is None else canonical_name(str(cell))


def group_clips(manifest: Manifest, group: str, root: Path | str, problems: Problems) -> Manifest:
    """Return a manifest whose clips have groups. A group with more than one given split is added to `problems`.

    Args:
        manifest: its clips have groups already if `group` is a column of the user's table.
        group: that column, or a regular expression with one group. It is searched in the name of a clip's file, or in
            the path below `root` if it has a '/'. Clips that it does not match are groups of their own.
        root: folder of the data set.
        problems: collects the groups that the data set's own splits cut.

    Raises:
        UserError: the layout has published splits, or `group` is neither a column nor a pattern that matches a clip.
    """
    require(
        manifest.layout in GROUPED_LAYOUTS,
        f"data.group is {group!r}, but the layout {manifest.layout} has splits of its own. Leave data.group empty.",
    )
    clips = manifest.clips
    if clips and not any(clip.group for clip in clips):
        clips = _match_pattern(clips, group, root)
    _report_cut_groups(clips, root, problems)
    alone = [clip.clip_id for clip in clips if not clip.group]
    note = f"{len({clip.group for clip in clips if clip.group})} groups by data.group {group!r}"
    if alone:
        note += (
            f"; {len(alone)} of {len(clips)} clips have no group and are placed one by one, e.g. {shorten(alone[0])}"
        )
    return replace(manifest, clips=clips, notes=(*manifest.notes, note))


def _match_pattern(clips: Sequence[Clip], group: str, root: Path | str) -> tuple[Clip, ...]:
    """Return the clips with what the pattern's group matches in their file names, or in their paths."""
    expected = "Give a column of the manifest, or a regular expression with one group, such as '_([a-z]+)_'."
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise UserError(f"data.group is {group!r}, which is not a regular expression ({error}). {expected}") from None
    require(
        pattern.groups == 1,
        f"data.group is {group!r}: no clip has a value in such a column, and as a regular expression it has "
        f"{pattern.groups} groups. {expected}",
    )
    top = os.path.realpath(root)
    found = []
    for clip in clips:
        path = clip.clip_id if clip.member is not None else clip.path or clip.clip_id
        text = (
            os.path.relpath(path, top)
            if "/" in group and clip.path and clip.member is None
            else path
            if "/" in group
            else path.rpartition("/")[2]
        )
        match = pattern.search(text)
        found.append(replace(clip, group=canonical_name(match[1] or "") if match else ""))
    require(
        any(clip.group for clip in found),
        f"data.group is {group!r}, which matches none of the {len(found)} clips, such as {shorten(text)}. {expected}",
    )
    return tuple(found)


def _report_cut_groups(clips: Sequence[Clip], root: Path | str, problems: Problems) -> None:
    splits: dict[str, set[str]] = {}
    for clip in clips:
        if clip.group and clip.split:
            splits.setdefault(clip.group, set()).add(clip.split)
    for name, own in sorted(splits.items()):
        if len(own) > 1:
            where = ", ".join(sorted(own))
            problems.add(
                root, None, f"the group {shorten(name)} is in the splits {where}; give all its clips one split"
            )
