"""Read the stored embeddings of listed clips into one matrix, in memory or in a temporary file.

Shapes: N clips, E embedding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ast_core.errors import UserError, require
from ast_core.evaluation.prediction_table import END, ERROR, PATH, START, to_text
from ast_core.storage.disk_space import require_free_space
from pipeline.embedding.embedding_table import EMBEDDING
from pipeline.prediction.row_folder import EMBEDDINGS, RowFolder

MOST_IN_MEMORY = 1 << 30
"""Bytes of embeddings that are held in memory; more are in a temporary file, of which the system keeps what it can."""


@dataclass(frozen=True, eq=False)
class ClipEmbeddings:
    """Embeddings of clips, which may lie in a temporary file."""

    matrix: npt.NDArray[np.float32]
    """Embeddings, [M, E]; rows of clips that were refused hold nothing."""
    places_N: npt.NDArray[np.int64]
    """Row of each clip in the matrix."""
    lengths_N: npt.NDArray[np.float64]
    """Length of each clip in seconds."""
    errors: tuple[str, ...]
    """Why each clip cannot be used, "" if it can."""

    def read(self, rows_B: np.ndarray) -> np.ndarray:
        """Return the embeddings of some clips in the given order, float32 [B, E]."""
        found: np.ndarray = self.matrix[self.places_N[rows_B]]
        return found

    def without_errors(self) -> ClipEmbeddings:
        """Return the embeddings of the clips that can be used; they share the matrix."""
        usable_N = np.array([not error for error in self.errors], np.bool_)
        return ClipEmbeddings(
            self.matrix, self.places_N[usable_N], self.lengths_N[usable_N], ("",) * int(usable_N.sum())
        )


def read_embeddings(place: str, names: Sequence[str], size: int, scratch: Path) -> ClipEmbeddings:
    """Read the embeddings of clips from a data set that `embed` wrote.

    Args:
        place: folder or URI of the data set.
        names: ids of the clips.
        size: number of values of an embedding.
        scratch: folder of the temporary file, which has no name and disappears with this process.

    Raises:
        UserError: a file cannot be read or was not written by `embed`, a clip has no row, or two ids are one text.
    """
    row_of = {to_text(name): row for row, name in enumerate(names)}
    require(len(row_of) == len(names), "Two clips have ids that are the same text in UTF-8; rename one of the files.")
    matrix, lengths_N = _make_matrix(len(names), size, scratch), np.zeros(len(names))
    errors: list[str | None] = [None] * len(names)
    with RowFolder(EMBEDDINGS, place, "--embeddings") as folder:
        for part, table in zip(folder.parts(), folder.tables(), strict=True):
            _check_columns(f"{place}/{part}", table, size)
            texts: list[Any] = table[PATH].to_pylist()
            pairs = [(row, row_of[text]) for row, text in enumerate(texts) if text in row_of]
            if pairs:
                from_K, to_K = np.array(pairs, np.int64).T
                _take_rows(table, from_K, to_K, matrix, lengths_N, errors)
    absent = [name for name, error in zip(names, errors, strict=True) if error is None]
    require(not absent, f"{place} has no row of {len(absent)} clips, such as {absent[:1]}. Run the same command again.")
    return ClipEmbeddings(matrix, np.arange(len(names)), lengths_N, tuple(error or "" for error in errors))


def _make_matrix(rows: int, size: int, scratch: Path) -> npt.NDArray[np.float32]:
    if 4 * rows * size <= MOST_IN_MEMORY:
        return np.zeros((rows, size), np.float32)
    require_free_space(scratch / "embeddings", 4 * rows * size)
    with tempfile.TemporaryFile(dir=scratch) as file:  # the mapping keeps it until the matrix is not used any more
        return np.memmap(file, np.float32, "w+", shape=(rows, size))


def _check_columns(part: str, table: pa.Table, size: int) -> None:
    wanted = {PATH: pa.string(), START: pa.float64(), END: pa.float64(), ERROR: pa.string()}
    wanted[EMBEDDING] = pa.list_(pa.float32(), size)
    for name, kind in wanted.items():
        own = table.schema.field(name).type if name in table.column_names else None
        if own != kind:
            raise UserError(
                f"{part} was not written by embed for this model: its column {name} is {own or 'missing'}, not {kind}. "
                "Move the file away; its clips are then embedded again."
            )


def _take_rows(
    table: pa.Table, from_K: np.ndarray, to_K: np.ndarray,
    matrix: np.ndarray, lengths_N: np.ndarray, errors: list[str | None],
) -> None:  # fmt: skip
    """Copy rows of a table to their places; a row without finite values is an error."""
    chosen = table.take(pa.array(from_K)).combine_chunks()
    lists: Any = chosen[EMBEDDING].combine_chunks()
    values_KE = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(to_K), -1)
    starts_K, ends_K = (chosen[name].to_numpy(zero_copy_only=False) for name in (START, END))
    finite_K = np.isfinite(values_KE).all(axis=1)
    matrix[to_K] = np.where(finite_K[:, None], values_KE, 0)
    lengths_N[to_K] = np.nan_to_num(ends_K - starts_K)
    reasons: list[Any] = chosen[ERROR].to_pylist()
    for row, reason, finite in zip(to_K.tolist(), reasons, finite_K.tolist(), strict=True):
        errors[row] = reason or ("" if finite else "model: an embedding is not finite")
