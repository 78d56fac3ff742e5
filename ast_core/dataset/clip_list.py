"""Read a list of clips to test on, such as another paper's copy of AudioSet's evaluation set."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_core.errors import UserError, require

_SEGMENT = re.compile(r"([A-Za-z0-9_-]{11})_\d{1,9}(?:\.\d{1,6})?")
"""Id of a segment of AudioSet: the video's id and the start in seconds."""
_HEADERS = {"clip_id", "ytid", "id", "filename", "youtube_id"}


@dataclass(frozen=True)
class Coverage:
    """The clips that a list names, matched with the available clips."""

    indices_N: np.ndarray
    """Indices of the listed clips among the available ones, int64, ascending."""
    listed: int
    """Number of different ids in the list."""
    absent: tuple[str, ...]
    """Ids of the list that no available clip has."""


def read_ids(path: Path) -> list[str]:
    """Read ids from a text file, one a line, or from the first column of a CSV file; `#` starts a comment line.

    A row of an AudioSet segments file (id, start, end, ...) becomes `ID_START`, the id of its clip.

    Raises:
        UserError: the file does not exist, is not text, or has no id.
    """
    require(path.is_file(), f"The list of clips {path} does not exist; give an existing file.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"The list of clips {path} is not text in UTF-8 ({error}); save it as UTF-8.") from None
    rows = csv.reader((line for line in lines if not line.lstrip().startswith("#")), skipinitialspace=True)
    try:
        ids = [_parse_id(row) for row in rows if row and row[0].strip()]
    except csv.Error as error:
        raise UserError(f"The list of clips {path} is not a text or CSV file: row {rows.line_num}, {error}.") from None
    if ids and ids[0].lower() in _HEADERS:
        ids = ids[1:]
    require(bool(ids), f"The list of clips {path} has no ids; give one id a line.")
    return ids


def cover(ids: Sequence[str], clip_ids: Sequence[str]) -> Coverage:
    """Find listed ids among the available clips.

    An id matches the clip with that id. Without one, it matches the clips whose ids without file suffix or without
    AudioSet's `_START` are equal to it. Without these, the id of a segment, a video's id of eleven characters with
    `_START`, matches the clip with the video's id: the Parquet copy of AudioSet has no times.

    Args:
        ids: listed ids, from `read_ids`; duplicates count once.
        clip_ids: ids of the available clips.
    """
    places: dict[str, list[int]] = {}
    for place, clip_id in enumerate(clip_ids):
        for name in {clip_id, clip_id.rpartition(".")[0], clip_id.rpartition("_")[0]} - {""}:
            places.setdefault(name, []).append(place)
    exact = {clip_id: place for place, clip_id in enumerate(clip_ids)}
    wanted = dict.fromkeys(ids)
    found = {name: [exact[name]] if name in exact else places.get(name) or _find_video(name, exact) for name in wanted}
    indices = sorted({place for hits in found.values() for place in hits})
    absent = tuple(name for name, hits in found.items() if not hits)
    return Coverage(np.array(indices, np.int64), len(wanted), absent)


def _find_video(name: str, exact: Mapping[str, int]) -> list[int]:
    """Return the place of the clip of a segment's video; none if the name is not a segment's."""
    segment = _SEGMENT.fullmatch(name)
    return [exact[segment[1]]] if segment and segment[1] in exact else []


def _parse_id(row: Sequence[str]) -> str:
    """Return the id of a row: its first cell, with the start in seconds where the second cell is a number."""
    first = row[0].strip()
    try:
        start = float(row[1])
    except (IndexError, ValueError):
        return first
    return f"{first}_" + f"{start:.3f}".rstrip("0").rstrip(".")
