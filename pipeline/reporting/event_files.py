"""Files of events: one table of all recordings (CSV, Parquet), or a file for each (Audacity's labels, Raven's tables).

The tables have these columns. A refused recording has one row, with its error and without an event; a recording
without events has no row.

| column | type | value |
|---|---|---|
| `path` | string | path of the recording, as in the table of predictions |
| `label` | string | name of the class; null if refused. In CSV, a name that a spreadsheet may run has a `'` in front |
| `start_s`, `end_s` | float64 | onset and offset, in seconds from the start of the recording; null if refused |
| `peak` | float32 | highest probability of a window of the event; null if refused |
| `error` | string | why the recording could not be used, else "" |

Audacity's label track is described in its manual ("Importing and Exporting Labels"): UTF-8, one line for each label,
start and end in seconds with six decimals and the text, with tabs between them.

Raven's selection table is tab-separated, too: `Selection`, `View`, `Channel`, the times, the frequencies, then columns
of the user's choice; `Annotation` is the one that Raven adds by default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ast_core.errors import require
from ast_core.evaluation.events import Event, EventRule
from ast_core.storage.atomic_files import atomic_write
from pipeline.cli.stages import PredictSettings

TABLE_SUFFIXES = (".csv", ".parquet")
"""Suffixes of a table of events."""
_FIELDS: list[pa.Field[Any]] = [
    pa.field("path", pa.string()),
    pa.field("label", pa.string()),
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
    pa.field("peak", pa.float32()),
    pa.field("error", pa.string()),
]
SCHEMA = pa.schema(_FIELDS)
"""Columns of a table of events."""
ROWS_AT_ONCE = 10_000
"""Rows that are held in memory before they are written."""
RAVEN_COLUMNS = (
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Annotation",
    "Score",
)  # fmt: skip
"""Columns of a selection table: seven of Raven's own, and two annotations."""
_SUFFIX = {"audacity": ".txt", "raven": ".Table.1.selections.txt"}
"""Ends of the names of the files; Raven's is its own default."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")


class EventTable:
    """A table of events that is written while the recordings are predicted, and is there when it is complete.

    Args:
        path: file to write, .csv or .parquet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def __enter__(self) -> Self:
        """Open a temporary file; errors are those of `atomic_write`."""
        self._stack = ExitStack()
        file = self._stack.enter_context(self._stack.enter_context(atomic_write(self._path)).open("wb"))
        self._writer: pyarrow.csv.CSVWriter | pyarrow.parquet.ParquetWriter
        if self._path.suffix == ".csv":
            self._writer = self._stack.enter_context(pyarrow.csv.CSVWriter(file, SCHEMA))
        else:
            self._writer = self._stack.enter_context(pyarrow.parquet.ParquetWriter(file, SCHEMA))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit the file, or remove it after an error."""
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._flush()

    def add(self, path: str, events: Sequence[Event]) -> None:
        """Add the events of a recording."""
        self.count += len(events)
        self._append([_to_row(path, own) for own in events])

    def refuse(self, path: str, error: str) -> None:
        """Add a row for a recording that could not be used."""
        self._append([dict.fromkeys(("label", "start_s", "end_s", "peak")) | {"path": path, "error": error}])

    def _append(self, rows: list[dict[str, Any]]) -> None:
        """Hold rows, and write all that are held if there are many."""
        for row in rows:
            texts = {key: _to_text(row[key]) for key in ("path", "label", "error") if row[key] is not None}
            self._rows.append(row | texts)
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._path.suffix == ".csv":
            for row in self._rows:
                row["path"] = f"./{row['path']}" if row["path"].startswith(_FORMULA) else row["path"]
                if row["label"] is not None and row["label"].startswith(_FORMULA):
                    row["label"] = f"'{row['label']}"
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows = []


class EventFolder:
    """A folder with a file of events for each recording, which is there when it is complete.

    Args:
        folder: folder to write to.
        form: `audacity` or `raven`.
        names: relative path of each recording's file without its suffix, by the path of the recording.
        high_hz: highest frequency that the model hears, for Raven.
    """

    def __init__(self, folder: Path, form: str, names: Mapping[str, Path], high_hz: float) -> None:
        self._folder, self._form, self._names, self._high_hz = folder, form, names, high_hz
        self.count = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing; each file is complete."""

    def add(self, path: str, events: Sequence[Event]) -> None:
        """Write the file of a recording, also if it has no events."""
        name = self._names[path]
        text = format_audacity(events) if self._form == "audacity" else format_raven(events, self._high_hz)
        place = self._folder / name.with_name(f"{name.name}{_SUFFIX[self._form]}")
        self.count += len(events)
        with atomic_write(place) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")

    def refuse(self, path: str, error: str) -> None:
        """Write nothing: these formats have no place for an error, and an empty file would say that nothing sounds."""


EventWriter = EventTable | EventFolder
"""A context in which the events of recordings are written, one recording after the other."""


def open_event_files(settings: PredictSettings, names: Mapping[str, Path], high_hz: float) -> EventWriter:
    """Return the writer of the files that `--events` asks for.

    Args:
        settings: settings with the place and the format.
        names: relative path of each recording's file without its suffix; used for folders only.
        high_hz: highest frequency that the model hears.

    Raises:
        UserError: the place has no suffix of a table.
    """
    require(settings.events is not None, "There is no place for events; give --events.")
    place = settings.events or Path()
    if settings.event_format != "table":
        return EventFolder(place, settings.event_format, names, high_hz)
    require(place.suffix in TABLE_SUFFIXES, f"--events {place} must end in .csv or .parquet.")
    return EventTable(place)


def read_rule(settings: PredictSettings) -> EventRule:
    """Return the rule that the flags ask for."""
    return EventRule(
        settings.event_threshold, settings.event_release, settings.event_min_s, settings.event_gap_s,
        settings.event_overlap,
    )  # fmt: skip


def format_audacity(events: Sequence[Event]) -> str:
    """Return events as a label track of Audacity."""
    return "".join(f"{own.start_s:.6f}\t{own.end_s:.6f}\t{_to_line(own.label)}\n" for own in events)


def format_raven(events: Sequence[Event], high_hz: float) -> str:
    """Return events as a selection table of Raven; each selection has all frequencies that the model hears."""
    lines = ["\t".join(RAVEN_COLUMNS)]
    for number, own in enumerate(events, 1):
        times = f"{own.start_s:.6f}\t{own.end_s:.6f}\t0.000\t{high_hz:.3f}"
        lines.append(f"{number}\tSpectrogram 1\t1\t{times}\t{_to_line(own.label)}\t{own.peak:.6f}")
    return "\n".join(lines) + "\n"


def _to_row(path: str, own: Event) -> dict[str, Any]:
    """Return the row of an event; times have microseconds, as in the other formats."""
    times = {"start_s": round(own.start_s, 6), "end_s": round(own.end_s, 6)}
    return {"path": path, "label": own.label, **times, "peak": own.peak, "error": ""}


def _to_text(text: str) -> str:
    """Return a text that UTF-8 can hold: paths may have bytes that are not UTF-8, which Python keeps as surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _to_line(text: str) -> str:
    """Return a text without tabs and ends of lines, which separate columns and rows."""
    return _CONTROL.sub(" ", _to_text(text))
