"""Find the group of each clip: its speaker, site or source recording, all of whose clips share a split."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.problems import Problems, canonical_name, shorten
from ast_core.errors import UserError, require

GROUPED_LAYOUTS = ("folders", "manifest")
"""Layouts of one's own data. The other layouts come with published splits."""


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


def group_clips(manifest: Manifest, group: str, root: Path, problems: Problems) -> Manifest:
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


def _match_pattern(clips: Sequence[Clip], group: str, root: Path) -> tuple[Clip, ...]:
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
        path = clip.path or clip.clip_id
        text = (
            os.path.relpath(path, top)
            if "/" in group and clip.path
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


def _report_cut_groups(clips: Sequence[Clip], root: Path, problems: Problems) -> None:
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
