"""The output of `predict`: nothing, a folder of Parquet files, or one table that is made of it at the end."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ast_core.errors import require
from ast_core.evaluation.prediction_table import PATH, SUFFIXES, write_tables
from ast_core.storage.file_systems import is_uri
from ast_core.storage.json_files import sha256_of_json
from ast_core.storage.name_set import NameSet
from pipeline.prediction.recording_chunks import ChunkResult
from pipeline.prediction.row_folder import PREDICTIONS, RowFolder
from pipeline.run_folder.folder_lock import lock_folder


class OutputPlace:
    """Where the rows go; each chunk of them is on the disk or in the store once it was written.

    Args:
        output: value of `--output`; None to keep no rows.

    Raises:
        UserError: it is neither a folder nor a table.
    """

    def __init__(self, output: str | None) -> None:
        self.output = output or ""
        self._table = Path(output) if output and _names_table(output) else None
        self._folder: RowFolder | None = None

    @contextlib.contextmanager
    def open(self, identity: dict[str, Any], inputs: Sequence[str]) -> Iterator[NameSet]:
        """Open the output for a run; yield the names of the recordings that have a row.

        Args:
            identity: model and options that decide the rows.
            inputs: inputs of the run. A table holds the rows of one run, so rows that a stopped run left are used
                only if its inputs were the same.

        Raises:
            UserError: another run writes there, or the rows there are of another model or other options.
        """
        known = NameSet()
        if not self.output:
            yield known
            return
        with contextlib.ExitStack() as stack:
            if self._table is None:
                place = self.output
            else:
                place = str(self._table.with_name(f".{self._table.name}.parts"))
                identity = {**identity, "inputs": sha256_of_json(list(inputs))}
            if not is_uri(place):
                stack.enter_context(lock_folder(Path(place), "predict", "--output"))
            self._folder = stack.enter_context(RowFolder(PREDICTIONS, place))
            if self._table is not None and not self._folder.matches(identity):
                _remove_rows(Path(place))
            self._folder.open(identity)
            for name in self._folder.names():
                known.add(name)
            yield known

    def write(self, result: ChunkResult) -> None:
        """Commit the rows of a chunk."""
        if self._folder is not None:
            self._folder.write_part(result.file_name, result.rows)

    def finish(self, classes: Sequence[str], is_listed: Callable[[str], bool]) -> None:
        """Make the table of the folder's rows, if the output is a table.

        Args:
            classes: names of the classes.
            is_listed: returns whether a recording is one of this run's inputs.
        """
        if self._table is not None and self._folder is not None:
            tables = (_keep_listed(table, is_listed) for table in self._folder.tables())
            write_tables(self._table, tables, classes)
            shutil.rmtree(self._table.with_name(f".{self._table.name}.parts"))


def _names_table(output: str) -> bool:
    """Return whether an output is the file of a table, and not a folder."""
    if output.endswith("/") or (not is_uri(output) and Path(output).is_dir()):
        return False
    name = output.partition("?")[0] if is_uri(output) else output
    suffix = Path(name).suffix
    require(
        suffix in {*SUFFIXES, ""},
        f"--output {output} must end in .csv, .json or .parquet; for a data set give a folder, which ends in /.",
    )
    require(
        not (suffix and is_uri(output)),
        f"--output {output} is a table in an object store; give a folder there, which ends in /, or a file on this "
        "machine.",
    )
    return bool(suffix)


def _remove_rows(folder: Path) -> None:
    """Remove what a stopped run with another model, other options or other inputs left."""
    for path in folder.iterdir():
        if path.name not in {".lock", ".holder"} and path.is_file():
            path.unlink()


def _keep_listed(table: pa.Table, is_listed: Callable[[str], bool]) -> pa.Table:
    names: list[Any] = table.column(PATH).to_pylist()
    kept = [is_listed(name) for name in names]
    return table if all(kept) else table.filter(pa.array(kept))
