"""Read a CSV file with a header, row by row, with line numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from ast_core.dataset.problems import Problems, read_lines, shorten


def csv_rows(path: Path, columns: Iterable[str], problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the first line's number and the cells by column of each row of a CSV file with a header.

    If a column is missing or listed twice, that is added to `problems`, and no rows are yielded.

    Raises:
        UserError: the file is missing.
    """
    rows = _split_cells(path, problems)
    number, header = next(rows, (None, []))
    if not _has_columns(path, number, [name.strip() for name in header], columns, problems):
        return
    header = [name.strip() for name in header]
    for number, row in rows:
        if len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        else:
            problems.add(path, number, f"the row has {len(row)} cells, the header {len(header)}")


def _split_cells(path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Yield non-empty rows with the number of their first line, where a quote that is never closed begins."""
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
    """Return whether a header has all columns once; add what is wrong to `problems`."""
    missing = [name for name in columns if name not in header]
    if missing:
        found = shorten(", ".join(header))
        other = len(header) == 1 and any(mark in header[0] for mark in ";\t")  # as spreadsheets save in many countries
        advice = "; save the file with commas between its columns" if other else ""
        problems.add(path, number, f"the first row has no column {', '.join(missing)}; its columns are {found}{advice}")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        problems.add(path, number, f"the column {shorten(min(twice))} is listed twice")
    return not (missing or twice)
