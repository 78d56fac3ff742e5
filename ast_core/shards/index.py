"""The index of a folder of shards: splits, counts, statistics and hashes."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_core.config import MOST_FRAMES
from ast_core.errors import DamagedError, UserError, require
from ast_core.serialization import from_dict
from ast_core.storage.json_files import read_hashed_json

INDEX = "index.json"


REJECTS = "rejects.parquet"


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds."""

    front_end: dict[str, Any]
    labels: tuple[str, ...]
    single_label: bool
    layout: str
    splits: dict[str, dict[str, Any]]
    """A split's books (listed, kept, rejected, missing), sums, and parts with rows and sha256."""
    data_hash: str
    """Over all parts' hashes, labels and front end: the same data has the same hash."""

    @staticmethod
    def load(folder: Path) -> ShardIndex:
        """The index of a prepared folder.

        Raises:
            UserError: there is none.
            DamagedError: it is not what prepare wrote.
        """
        path = folder / INDEX
        require(path.is_file(), f"There are no shards in {folder}: run prepare first, or give --shards.")
        values = read_hashed_json(path, "Index of the shards")
        try:
            found = from_dict(ShardIndex, values)
            _require_index(found)
        except UserError as error:
            raise DamagedError(f"{path} is not an index of shards: {error} Run prepare again.") from None
        return found

    def require_splits(self, splits: Sequence[str]) -> None:
        """UserError that names the available splits, if one is not there."""
        unknown = [split for split in splits if split not in self.splits]
        names = ", ".join(sorted(self.splits))
        require(not unknown, f"There is no split {', '.join(unknown)}; there are {names}. Name them in data.*-split.")

    def require_balance(self, splits: Sequence[str]) -> None:
        """DamagedError unless each listed clip of these splits is a row of a part, rejected, or missing."""
        for split in splits:
            books = self.splits[split]
            rows, kept = sum(part["rows"] for part in books["parts"]), books["kept"]
            if rows != kept or books["listed"] != kept + books["rejected"] + books["missing"]:
                raise DamagedError(
                    f"The books of {split} do not balance: {books['listed']} listed, {kept} kept in {rows} rows, "
                    f"{books['rejected']} rejected, {books['missing']} missing. Run prepare again."
                )

    def statistics(self, splits: Sequence[str]) -> tuple[float, float]:
        """Mean and standard deviation of raw log-mel over splits, padding included as in the published recipe."""
        self.require_splits(splits)
        total, squares, count = (sum(self.splits[split][key] for split in splits) for key in ("sum", "sum_sq", "count"))
        require(count > 0, f"The splits {', '.join(splits)} hold no clip to take statistics of.")
        require(math.isfinite(total + squares), f"The splits {', '.join(splits)} hold NaN or infinity: prepare again.")
        mean = total / count
        return mean, float(max(squares / count - mean**2, 1e-12) ** 0.5)


def _require_index(index: ShardIndex) -> None:
    """UserError, unless sizes, books and parts are such as `prepare` writes: paths and memory are made of them."""
    sizes = [index.front_end.get(key) for key in ("target_frames", "num_mel_bins")]
    require(all(_counts(size) and int(size or 0) in range(1, MOST_FRAMES + 1) for size in sizes), "it has no sizes.")
    for name, books in index.splits.items():
        require(isinstance(books, dict) and re.fullmatch(r"\w[\w.-]*", name) is not None, f"{name!a} is no split.")
        sums = [books.get(key) for key in ("sum", "sum_sq")]
        added = all(isinstance(value, float) or _counts(value) for value in sums)
        counts = [books.get(key) for key in ("listed", "kept", "rejected", "missing", "count")]
        require(added and all(map(_counts, counts)), f"the books and sums of {name} are not numbers.")
        parts = books.get("parts")
        require(isinstance(parts, list) and all(map(_is_part, parts)), f"the parts of {name} are not named.")


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < sys.maxsize


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and _counts(part.get("rows"))
        and isinstance(part.get("sha256"), str)
        and re.fullmatch(r"part-\d+\.parquet", str(part.get("name"))) is not None
    )
