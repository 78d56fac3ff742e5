"""Files of events, read again with other readers."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from ast_core.errors import UserError
from ast_core.evaluation.events import Event
from pipeline.cli.inputs import require_inputs
from pipeline.cli.stages import PredictSettings
from pipeline.reporting import event_files
from pipeline.reporting.event_files import RAVEN_COLUMNS, SCHEMA, open_event_files

EVENTS = {
    "/data/a.wav": [Event("dog", 0.1, 1 / 3, float(np.float32(0.7))), Event('Zoé, "x"\n\t5 $', 2.0, 600.25, 1.0)],
    "/data/silent.wav": [],
    "=cmd.wav": [Event("-formula", 1e-7, 12345.678, 0.5)],
    "/data/\udcff.wav": [Event("dog", 0.0, 1.0, 0.5)],
}
NAMES = {path: Path(Path(path).name) for path in EVENTS}


def write(place: Path, form: str = "table") -> None:
    """Write the events, and a refused recording."""
    settings = PredictSettings(inputs=(), events=place, event_format=form)  # type: ignore[arg-type]
    with open_event_files(settings, NAMES, 8000.0) as files:
        for path, events in EVENTS.items():
            files.add(path, events)
        files.refuse("/data/bad.wav", "not audio")


@pytest.mark.parametrize("rows_at_once", [1, 10_000])
def test_parquet_has_a_row_for_each_event_and_each_refused_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(event_files, "ROWS_AT_ONCE", rows_at_once)
    write(tmp_path / "events.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "events.parquet")
    assert table.schema == SCHEMA
    *rows, refused = table.to_pylist()
    expected = [{**vars(own), "path": path, "error": ""} for path, events in EVENTS.items() for own in events]
    for row in expected:
        row |= {"start_s": round(row["start_s"], 6), "end_s": round(row["end_s"], 6)}  # type: ignore[call-overload]
    expected[-1]["path"] = "/data/\\udcff.wav"
    assert rows == expected
    assert refused == {
        "path": "/data/bad.wav", "label": None, "start_s": None, "end_s": None, "peak": None, "error": "not audio"
    }  # fmt: skip


def test_csv_has_the_values_of_parquet_and_runs_as_no_formula(tmp_path: Path) -> None:
    write(tmp_path / "events.parquet")
    write(tmp_path / "events.csv")
    table = pyarrow.parquet.read_table(tmp_path / "events.parquet").to_pylist()
    with (tmp_path / "events.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == SCHEMA.names
    assert len(rows) == len(table)
    for row, own in zip(rows, table, strict=True):
        assert row["error"] == own["error"]
        assert row["path"] == ("./=cmd.wav" if own["path"] == "=cmd.wav" else own["path"])
        assert row["label"] == ("'-formula" if own["label"] == "-formula" else own["label"] or "")
        for name in ("start_s", "end_s"):
            assert (float(row[name]) if row[name] else None) == own[name]
        assert (float(np.float32(row["peak"])) if row["peak"] else None) == own["peak"]
    assert pyarrow.csv.read_csv(tmp_path / "events.csv", parse_options=pyarrow.csv.ParseOptions(
        newlines_in_values=True)).num_rows == len(rows)  # fmt: skip


def test_audacity_has_a_label_track_for_each_recording(tmp_path: Path) -> None:
    write(tmp_path / "labels", "audacity")
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {f"{name}.txt" for name in NAMES.values()}
    text = (tmp_path / "labels" / "a.wav.txt").read_bytes().decode("utf-8")
    assert text == '0.100000\t0.333333\tdog\n2.000000\t600.250000\tZoé, "x" 5 $\n'
    assert (tmp_path / "labels" / "silent.wav.txt").read_text() == ""
    # The grammar of the manual: start, tab, end, tab, text.
    assert all(re.fullmatch(r"\d+\.\d{6}\t\d+\.\d{6}\t[^\t]*", line) for line in text.splitlines())


def test_raven_has_a_selection_table_for_each_recording(tmp_path: Path) -> None:
    write(tmp_path / "tables", "raven")
    found = {path.name for path in (tmp_path / "tables").iterdir()}
    assert found == {f"{name}.Table.1.selections.txt" for name in NAMES.values()}
    with (tmp_path / "tables" / "a.wav.Table.1.selections.txt").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))
    assert list(rows[0]) == list(RAVEN_COLUMNS)
    assert [row["Selection"] for row in rows] == ["1", "2"]
    assert {(row["View"], row["Channel"]) for row in rows} == {("Spectrogram 1", "1")}
    assert [float(row["Begin Time (s)"]) for row in rows] == [0.1, 2.0]
    assert [float(row["End Time (s)"]) for row in rows] == [0.333333, 600.25]
    assert {(float(row["Low Freq (Hz)"]), float(row["High Freq (Hz)"])) for row in rows} == {(0.0, 8000.0)}
    assert [row["Annotation"] for row in rows] == ["dog", 'Zoé, "x" 5 $']
    assert [float(row["Score"]) for row in rows] == [0.7, 1.0]
    empty = (tmp_path / "tables" / "silent.wav.Table.1.selections.txt").read_text()
    assert empty == "\t".join(RAVEN_COLUMNS) + "\n"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_fails_leaves_the_old_one_and_no_temporary_file(tmp_path: Path, suffix: str) -> None:
    place = tmp_path / f"events{suffix}"
    place.write_text("old")
    settings = PredictSettings(inputs=(), events=place)
    with pytest.raises(AttributeError), open_event_files(settings, NAMES, 8000.0) as files:
        files.add("/data/a.wav", [*EVENTS["/data/a.wav"], None])  # type: ignore[list-item]
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("events.txt", "table", "must be a .csv or .parquet file; for a folder give --event-format audacity or raven"),
        ("folder.csv", "table", "must be a .csv or .parquet file"),
        ("events.csv", "raven", "is a file; give a folder"),
        ("file", "audacity", "is a file; give a folder"),
        (None, "audacity", "--event-format is audacity, but --events is missing"),
    ],
)
def test_a_place_that_does_not_fit_the_format_is_refused_before_the_model_is_loaded(
    tmp_path: Path, name: str | None, form: str, message: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    events = None if name is None else tmp_path / name
    settings = PredictSettings(inputs=(tmp_path,), model=str(tmp_path), events=events, event_format=form)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(message)):
        require_inputs(settings)
