"""A chunk of recordings, the unit of `predict` and `embed`: one worker takes it, and its rows become a Parquet file."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ast_core.dataset.clips import Clip

FEWEST, MOST = 16, 256
"""Recordings of the first chunks, and of chunks in the middle of a long list."""
_GROWTH = 64
"""A chunk has this share of the recordings before it, so that a few hundred are spread over many workers."""


@dataclass(frozen=True)
class Chunk:
    """Recordings that follow each other in the list."""

    number: int
    """Place of the first one in the list of all inputs."""
    clips: tuple[Clip, ...]

    @property
    def file_name(self) -> str:
        """Name of the file of its rows: the same recordings have the same name, others have another one."""
        names = json.dumps([clip.clip_id for clip in self.clips]).encode()
        return f"part-{self.number:010d}-{hashlib.blake2b(names, digest_size=6).hexdigest()}.parquet"

    def pack(self) -> bytes:
        """Return the chunk as compressed JSON, a few bytes a recording."""
        clips = [[clip.clip_id, clip.path, clip.member, clip.start_s, clip.end_s] for clip in self.clips]
        return zlib.compress(json.dumps([self.number, clips]).encode(), 1)

    @staticmethod
    def unpack(content: bytes) -> Chunk:
        """Return the chunk of which `pack` made bytes."""
        number, clips = json.loads(zlib.decompress(content))
        return Chunk(
            number,
            tuple(
                Clip(name, path, (), "", start_s, end_s, member=None if member is None else tuple(member))
                for name, path, member, start_s, end_s in clips
            ),
        )


MOST_REASONS = 1000
"""Reasons that are counted apart; they may hold numbers, so there may be a million of them."""


def count_reasons(total: Counter[str], more: Counter[str]) -> None:
    """Add refused recordings by reason; those beyond `MOST_REASONS` reasons are counted together."""
    for reason, count in more.items():
        total[reason if reason in total or len(total) < MOST_REASONS else "other reasons"] += count


@dataclass
class ChunkResult:
    """What became of a chunk."""

    number: int
    file_name: str
    recordings: int = 0
    refused: int = 0
    length_s: float = 0.0
    """Length of all recordings that were not refused."""
    labels: Counter[str] = field(default_factory=Counter)
    """Recordings by their most probable chosen label; those without one are under "". Embeddings have no labels."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Refused recordings by reason."""
    rows: bytes = b""
    """Parquet file of the rows."""
    error: str = ""
    """Sentence for the user if the chunk could not be used: Ray Data does not keep the type of an exception."""

    def to_row(self) -> dict[str, Any]:
        """Return the result as a row of a Ray data set."""
        facts = {name: value for name, value in vars(self).items() if name != "rows"}
        return {"facts": json.dumps(facts), "rows": self.rows}

    @staticmethod
    def from_row(row: dict[str, Any]) -> ChunkResult:
        """Return the result of which `to_row` made a row."""
        facts = json.loads(row["facts"])
        labels, reasons = Counter(facts.pop("labels")), Counter(facts.pop("reasons"))
        return ChunkResult(**facts, labels=labels, reasons=reasons, rows=row["rows"])


ChunkResults = Generator[ChunkResult, None, None]
"""Results in the order of their ends, which stop the workers when they are closed."""


def chunk_clips(clips: Iterable[tuple[int, Clip]]) -> Iterator[Chunk]:
    """Cut recordings, each with its place in the list of all inputs, into chunks.

    The cut depends on the places alone, so that a run that is resumed makes the chunks that are missing.
    """
    held: list[Clip] = []
    first = 0
    for place, clip in clips:
        if not held:
            first = place
        held.append(clip)
        if len(held) == chunk_size(first):
            yield Chunk(first, tuple(held))
            held = []
    if held:
        yield Chunk(first, tuple(held))


def chunk_size(place: int) -> int:
    """Return the number of recordings of the chunk that begins at a place of the list."""
    return min(MOST, max(FEWEST, place // _GROWTH // FEWEST * FEWEST))
