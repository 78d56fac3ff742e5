"""Read a CSV file with a header, row by row, with line numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from ast_core.dataset.problems import Problems, read_lines, shorten


def csv_rows(path: Path, columns: Iterable[str], problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the first line, and cells by column, of each row of a CSV file with a header.

    A column that is missing or there twice is a problem, too, and there are no rows then.

    Raises:
        UserError: the file is missing.
    """
    rows = _csv_cells(path, problems)
    number, header = next(rows, (None, []))
    if not _has_columns(path, number, [name.strip() for name in header], columns, problems):
        return
    header = [name.strip() for name in header]
    for number, row in rows:
        if len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        else:
            problems.add(path, number, f"{len(row)} cells where the header has {len(header)}")


def _csv_cells(path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the number of their first line: a quote that is never closed begins there."""
    reader = csv.reader((text + "\n" for _, text in read_lines(path, problems)), skipinitialspace=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(path, number, f"not a CSV row ({error})")
            continue
        if row:
            yield number, row


def _has_columns(path: Path, number: int | None, header: list[str], columns: Iterable[str], problems: Problems) -> bool:
    missing = [name for name in columns if name not in header]
    if missing:
        found = shorten(", ".join(header))
        problems.add(path, number, f"no column {', '.join(missing)} in its first row; its columns are {found}")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        problems.add(path, number, f"the column {shorten(min(twice))} is there twice")
    return not (missing or twice)
