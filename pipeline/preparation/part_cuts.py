"""Cut a split's clips into the parts of the shards, so that `prepare` reads each source file once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.clip_contents import is_in_parquet

LARGE_GROUP = 2
"""A row group of more parts than this is named in a note."""


def cut_clips(clips: Sequence[Clip], clips_per_part: int, audio_column: str = "") -> list[tuple[Clip, ...]]:
    """Cut clips into parts of `clips_per_part`, in their order.

    The clips of a row group of a Parquet file stay together, since a row group is read from its beginning: parts end
    earlier where the next row group does not fit, and a larger row group is a part of its own.

    Args:
        clips: clips of one split.
        clips_per_part: largest number of clips in a part that is not one row group.
        audio_column: column of the recordings in Parquet files.
    """
    parts: list[tuple[Clip, ...]] = []
    part: list[Clip] = []
    for unit in _split_units(clips, audio_column):
        if part and len(part) + len(unit) > clips_per_part:
            parts.append(tuple(part))
            part = []
        part += unit
        if len(part) >= clips_per_part:
            parts.append(tuple(part))
            part = []
    return [*parts, tuple(part)] if part else parts


def note_large_groups(clips: Sequence[Clip], clips_per_part: int, audio_column: str = "") -> str:
    """Return a sentence about row groups that make parts much larger than the settings ask for; "" if none does.

    Only one worker reads a row group, and an interrupted part starts again from its beginning.
    """
    groups = Counter(
        (clip.path, clip.member[0], clip.split) for clip in clips if clip.member and is_in_parquet(clip, audio_column)
    )
    large = {name: count for name, count in groups.items() if count > LARGE_GROUP * clips_per_part}
    if not large:
        return ""
    (path, group, _), count = max(large.items(), key=lambda item: item[1])
    return (
        f"{len(large)} row groups of Parquet files have more than {LARGE_GROUP} times prepare.clips-per-part "
        f"{clips_per_part} clips, the largest {count} ({path}, row group {group}). Each becomes one part, which one "
        "worker reads. Files with row groups of some hundred rows are read in parallel."
    )


def _split_units(clips: Sequence[Clip], audio_column: str) -> Iterator[list[Clip]]:
    """Yield the clips that must share a part: those of a row group that follow each other, else each by itself."""

    def name_unit(numbered: tuple[int, Clip]) -> tuple[str, int] | int:
        number, clip = numbered
        return (clip.path, clip.member[0]) if clip.member and is_in_parquet(clip, audio_column) else number

    for _, unit in itertools.groupby(enumerate(clips), name_unit):
        yield [clip for _, clip in unit]
