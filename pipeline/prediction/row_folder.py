"""The data set that a stage writes of many recordings: Parquet files, and a note of what decides their rows.

A folder holds `part-NUMBER-HASH.parquet`, each committed at once, and the note, such as `_predictions.json`. It is a
local folder or a place in an object store. It can be read as one data set by pyarrow, pandas, DuckDB and Spark, which
ignore names that begin with `_` or `.`.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet

from ast_core.errors import DamagedError, UserError, require
from ast_core.evaluation.prediction_table import PATH
from ast_core.storage.atomic_files import atomic_write
from ast_core.storage.file_systems import is_uri, open_filesystem
from ast_core.storage.object_store import ObjectStore

FORMAT = 1
"""Number in the note: raise it when the same inputs and options would make other rows."""
_LARGEST_NOTE = 1 << 20


@dataclass(frozen=True)
class RowKind:
    """What the rows of a folder are."""

    noun: str
    """Word for the rows, such as `predictions`."""
    stage: str
    """Stage that writes them."""

    @property
    def note(self) -> str:
        """Name of the file that says which model and options made the rows."""
        return f"_{self.noun}.json"


PREDICTIONS = RowKind("predictions", "predict")
EMBEDDINGS = RowKind("embeddings", "embed")


class RowFolder:
    """The output folder of a stage, opened for one run.

    Args:
        kind: what its rows are.
        place: path of a local folder, or the URI of a folder in an object store.
        option: the user's option that names the folder, for errors.

    Raises:
        UserError: the URI cannot be used.
    """

    def __init__(self, kind: RowKind, place: str, option: str = "--output") -> None:
        self.kind, self._option = kind, option
        self.place = place.rstrip("/")
        self._until_closed = contextlib.ExitStack()
        self._store: ObjectStore | None = None
        self._root = Path(self.place)
        if is_uri(place):
            open_filesystem(self.place, option)  # checks the URI, and names the option in its error
            self._root = Path(
                self._until_closed.enter_context(tempfile.TemporaryDirectory(prefix=f"ast-{kind.stage}-"))
            )
            self._store = ObjectStore(self._root, self.place)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the temporary files of uploads."""
        self._until_closed.close()

    def open(self, identity: dict[str, Any]) -> None:
        """Write the note into a new folder, or check it in one that exists.

        Args:
            identity: model and options that decide the rows, as JSON.

        Raises:
            UserError: the folder holds rows of another model or with other options, or other files.
        """
        known = self._read_note()
        wanted = {"format": FORMAT, **identity}
        if known is None:
            others = [name for name in self._names() if not name.startswith((".", "_"))]
            require(
                not others,
                f"{self.place} holds {', '.join(sorted(others)[:3])}, but no {self.kind.note}: {self.kind.stage} did "
                f"not write it. Give {self._option} a new folder.",
            )
            self._commit(self.kind.note, f"{json.dumps(wanted, indent=1)}\n".encode())
            return
        different = [key for key in wanted if known.get(key) != wanted[key]]
        require(
            not different,
            f"{self.place} holds {self.kind.noun} with another {', '.join(different)}: "
            f"{', '.join(f'{key} {str(known.get(key))[:80]}, not {str(wanted[key])[:80]}' for key in different)}. "
            f"Give {self._option} a new folder, or the model and options of before.",
        )

    def matches(self, identity: dict[str, Any]) -> bool:
        """Return whether the folder holds rows of this model with these options."""
        return self._read_note() == {"format": FORMAT, **identity}

    def parts(self) -> list[str]:
        """Return the names of the Parquet files, in the order of the recordings."""
        return sorted(name for name in self._names() if name.endswith(".parquet") and name[0] not in "._")

    def names(self) -> Iterator[str]:
        """Yield the names of the recordings that have a row; those of one file once."""
        for part in self.parts():
            table = self._read(part, [PATH])
            require(
                PATH in table.column_names,
                f"{self.place}/{part} cannot be read: it has no column {PATH}, so {self.kind.stage} did not write it. "
                "Move it.",
            )
            names: list[Any] = table.column(PATH).unique().to_pylist()
            yield from names

    def tables(self) -> Iterator[pa.Table]:
        """Yield the table of each Parquet file."""
        for part in self.parts():
            yield self._read(part, None)

    def write_part(self, name: str, content: bytes) -> None:
        """Commit one Parquet file: it is complete or does not exist.

        Raises:
            UserError: the disk is full, or the store does not accept it.
        """
        self._commit(name, content)

    def _commit(self, name: str, content: bytes) -> None:
        path = self._root / name
        if self._store is None:
            with atomic_write(path, len(content)) as temporary:
                temporary.write_bytes(content)
            return
        with tempfile.NamedTemporaryFile(dir=self._root) as file:
            file.write(content)
            file.flush()
            self._store.push(path, Path(file.name))

    def _names(self) -> list[str]:
        """Return the names of the files directly in the folder."""
        if self._store is not None:
            return [path.name for path in self._store.list_files(self._root) if path.parent == self._root]
        require(
            self._root.is_dir() or not self._root.exists(),
            f"{self._option} {self.place} is a file; give a folder's name.",
        )
        return [path.name for path in self._root.iterdir()] if self._root.is_dir() else []

    def _read_note(self) -> dict[str, Any] | None:
        if self._store is not None:
            content = self._store.read(self._root / self.kind.note)
        else:
            path = self._root / self.kind.note
            content = path.read_bytes()[:_LARGEST_NOTE] if path.is_file() else None
        if content is None:
            return None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            value = error
        if not isinstance(value, dict):
            raise DamagedError(
                f"{self.place}/{self.kind.note} is damaged: it is no JSON object. Give {self._option} a new folder."
            )
        return value

    def _read(self, part: str, columns: list[str] | None) -> pa.Table:
        try:
            if self._store is None:
                return pyarrow.parquet.ParquetFile(self._root / part).read(columns)
            with self._store.filesystem.open_input_file(self._store.key(self._root / part)) as file:
                return pyarrow.parquet.ParquetFile(file).read(columns)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.place}/{part} cannot be read: {error}. If it is damaged, remove it: {self.kind.stage} then "
                "uses its recordings again."
            ) from error
