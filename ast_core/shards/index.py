"""Read the index of a folder of shards: splits, counts, statistics and hashes."""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ast_core.config import MOST_FRAMES
from ast_core.dataset.clips import UnlistedFiles
from ast_core.dataset.stratified_split import HASH_ALONE, SPLIT_RULES
from ast_core.errors import DamagedError, UserError, require
from ast_core.serialization import NAN_ALLOWED, from_dict
from ast_core.storage.json_files import read_hashed_json

INDEX = "index.json"
REJECTS = "rejects.parquet"


@dataclass(frozen=True)
class PartEntry:
    """One Parquet part of a split."""

    IGNORES_UNKNOWN_KEYS: ClassVar[bool] = True
    name: str
    """Name of its file in the split's folder."""
    rows: int
    """Number of clips in it."""
    sha256: str
    """Hash of its bytes."""
    bytes: int = 0
    """Size of the file; 0 in indices of earlier versions."""

    def __post_init__(self) -> None:
        """Check the name, which becomes a path, and the count, which becomes memory."""
        valid = re.fullmatch(r"part-\d+\.parquet", self.name) is not None
        require(valid, f"the part {self.name[:99]!a} is not named part-NUMBER.parquet.")
        _require_count(f"rows of {self.name}", self.rows)
        _require_count(f"bytes of {self.name}", self.bytes)


@dataclass(frozen=True)
class SplitCounts:
    """Counts, sums and parts of one split."""

    IGNORES_UNKNOWN_KEYS: ClassVar[bool] = True
    listed: int
    """Clips that the data set lists."""
    kept: int
    """Clips that the parts hold."""
    rejected: int
    """Clips whose audio cannot be used."""
    missing: int
    """Clips without a file."""
    count: int
    """Values of log-mel, over all kept clips."""
    sum: float = field(metadata=NAN_ALLOWED)
    """Sum of these values."""
    sum_sq: float = field(metadata=NAN_ALLOWED)
    """Sum of their squares."""
    parts: tuple[PartEntry, ...]
    classes: tuple[int, ...] = ()
    """Kept clips of each label, in the order of the labels; empty in indices of version 0.1.0."""
    clip_index: str = ""
    """SHA-256 of the split's `clips.arrow`; empty without one, as in shards of earlier versions."""

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("listed", "kept", "rejected", "missing", "count"):
            _require_count(name, getattr(self, name))
        for count in self.classes:
            _require_count("classes", count)

    def __add__(self, other: SplitCounts) -> SplitCounts:
        """Return the counts of two sets of parts with the same labels together."""
        together = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        together["classes"] = tuple(map(operator.add, self.classes, other.classes))
        return SplitCounts(**together)

    @property
    def rows(self) -> int:
        """Number of clips in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def seen(self) -> int:
        """Number of clips that were kept, rejected or missing; equals `listed` unless a clip was lost."""
        return self.kept + self.rejected + self.missing


@dataclass(frozen=True)
class ShardIndex:
    """Content of a folder of shards."""

    front_end: dict[str, Any]
    """Settings of the front end that made the filterbanks, as JSON values."""
    labels: tuple[str, ...]
    """Label names in index order."""
    single_label: bool
    """Whether every clip has exactly one label."""
    layout: str
    """Layout that the data set was read as."""
    splits: dict[str, SplitCounts]
    """Counts, sums and parts by split."""
    data_hash: str
    """Hash of all parts' hashes, the labels and the front end; the same data has the same hash."""
    unlisted: tuple[UnlistedFiles, ...] = ()
    """Files of the data set that are no clips, by reason."""
    split_rule: int = HASH_ALONE
    """Rule that placed clips without a split, as `ast_core.dataset.stratified_split` numbers them."""

    def __post_init__(self) -> None:
        """Check sizes, which become memory, and names of splits, which become paths."""
        require(
            self.split_rule in SPLIT_RULES,
            f"split_rule is {self.split_rule}; this version knows {', '.join(map(str, SPLIT_RULES))}.",
        )
        for key in ("target_frames", "num_mel_bins"):
            size = self.front_end.get(key)
            fits = isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= MOST_FRAMES
            require(fits, f"front_end.{key} is {str(size)[:99]!a}; give 1 to {MOST_FRAMES}.")
        for name, split in self.splits.items():
            fits = len(split.classes) in {0, len(self.labels)}
            require(fits, f"classes of {name[:99]!a} has {len(split.classes)} counts; give {len(self.labels)}.")
            require(re.fullmatch(r"\w[\w.-]*", name) is not None, f"{name[:99]!a} is not a name of a split.")

    @staticmethod
    def load(folder: Path) -> ShardIndex:
        """Read the index of a prepared folder.

        Raises:
            UserError: the folder has no index.
            DamagedError: the index is not what `prepare` wrote.
        """
        path = folder / INDEX
        require(path.is_file(), f"There are no shards in {folder}; run prepare first, or give --shards.")
        values = read_hashed_json(path, "Index of the shards")
        try:
            return from_dict(ShardIndex, values)
        except UserError as error:
            raise DamagedError(f"{path} is not an index of shards: {error} Run prepare again.") from None

    @property
    def class_counts(self) -> dict[str, tuple[int, ...]]:
        """Kept clips of each label, by split; empty if the index is one of version 0.1.0, which lacks them."""
        return {name: split.classes for name, split in self.splits.items() if split.classes}

    def require_splits(self, splits: Sequence[str]) -> None:
        """Raise UserError, which names the existing splits, if one of `splits` does not exist."""
        unknown = [split for split in splits if split not in self.splits]
        names = ", ".join(sorted(self.splits))
        require(not unknown, f"There is no split {', '.join(unknown)}; there are {names}. Name them in data.*-split.")

    def require_balance(self, splits: Sequence[str]) -> None:
        """Raise DamagedError unless each listed clip of these splits is a row of a part, rejected, or missing."""
        for split in splits:
            own = self.splits[split]
            if own.rows != own.kept or own.listed != own.seen:
                raise DamagedError(
                    f"The counts of {split} do not balance: {own.listed} listed, {own.kept} kept in {own.rows} rows, "
                    f"{own.rejected} rejected, {own.missing} missing. Run prepare again."
                )

    def statistics(self, splits: Sequence[str]) -> tuple[float, float]:
        """Return mean and standard deviation of raw log-mel over splits, with padding as in the published recipe.

        Raises:
            UserError: a split does not exist, the splits hold no clip, or the sums are not finite.
        """
        self.require_splits(splits)
        own = [self.splits[split] for split in splits]
        total, squares, count = (sum(getattr(one, key) for one in own) for key in ("sum", "sum_sq", "count"))
        require(count > 0, f"The splits {', '.join(splits)} hold no clips to compute statistics from.")
        require(math.isfinite(total + squares), f"The splits {', '.join(splits)} hold NaN or infinity; prepare again.")
        mean = total / count
        return mean, float(max(squares / count - mean**2, 1e-12) ** 0.5)


def _require_count(name: str, value: int) -> None:
    require(0 <= value < sys.maxsize, f"{name} is {value}; give 0 or more.")
