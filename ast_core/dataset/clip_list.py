"""A list of clips that a test is asked for, such as another paper's copy of AudioSet's evaluation set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_core.errors import UserError, require

_HEADERS = {"clip_id", "ytid", "id", "filename", "youtube_id"}


@dataclass(frozen=True)
class Coverage:
    """Which clips at hand a list names."""

    indices_N: np.ndarray
    """Of the clips at hand, int64, ascending."""
    listed: int
    """Different ids in the list."""
    absent: tuple[str, ...]
    """Ids of the list that no clip at hand has."""


def read_ids(path: Path) -> list[str]:
    """Ids in a text file, one a line, or in the first column of a CSV file; `#` starts a comment.

    A row as in AudioSet's segments files (id, start, end, ...) is named as its clips are, `ID_START`.

    Raises:
        UserError: no such file, not text, or no id in it.
    """
    require(path.is_file(), f"There is no list of clips {path}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"The list of clips {path} is not text in UTF-8 ({error}).") from None
    rows = csv.reader((line for line in lines if not line.lstrip().startswith("#")), skipinitialspace=True)
    try:
        ids = [_clip_id(row) for row in rows if row and row[0].strip()]
    except csv.Error as error:
        raise UserError(f"The list of clips {path} is no text file or CSV: row {rows.line_num}, {error}.") from None
    if ids and ids[0].lower() in _HEADERS:
        ids = ids[1:]
    require(bool(ids), f"The list of clips {path} names none.")
    return ids


def cover(ids: Sequence[str], clip_ids: Sequence[str]) -> Coverage:
    """Find listed ids among clips: by the whole id, else without file ending, else without AudioSet's `_START`.

    Args:
        ids: from `read_ids`; duplicates count once.
        clip_ids: at hand.
    """
    places: dict[str, list[int]] = {}
    for place, clip_id in enumerate(clip_ids):
        for name in {clip_id, clip_id.rpartition(".")[0], clip_id.rpartition("_")[0]} - {""}:
            places.setdefault(name, []).append(place)
    exact = {clip_id: place for place, clip_id in enumerate(clip_ids)}
    wanted = dict.fromkeys(ids)
    found = {name: [exact[name]] if name in exact else places.get(name, []) for name in wanted}
    indices = sorted({place for hits in found.values() for place in hits})
    absent = tuple(name for name, hits in found.items() if not hits)
    return Coverage(np.array(indices, np.int64), len(wanted), absent)


def _clip_id(row: Sequence[str]) -> str:
    first = row[0].strip()
    try:
        start = float(row[1])
    except (IndexError, ValueError):
        return first
    return f"{first}_" + f"{start:.3f}".rstrip("0").rstrip(".")
