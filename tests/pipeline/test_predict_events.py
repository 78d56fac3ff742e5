"""The events that predict writes of recordings in which tones have known times."""

from __future__ import annotations

from pathlib import Path

import ears
import pyarrow.csv
import pyarrow.parquet
import pytest

from ast_core.weights.bundle import Bundle
from pipeline.cli.stages import PredictSettings
from pipeline.predict import predict

TONES: dict[str, list[ears.Tone]] = {
    "a/x.wav": [("low", 2.3, 3.0), ("high", 7.0, 8.4)],
    "b/x.wav": [("high", 0.9, 1.5)],
    "b/silent.wav": [],
}


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with recordings of tones and a broken one, for a model that hears the tones."""
    for name, tones in TONES.items():
        ears.save_tones(tmp_path / "in" / name, 10.0, tones)
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF")
    monkeypatch.setattr(Bundle, "load", lambda _: ears.make_bundle())
    return tmp_path / "in"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_has_the_events_of_all_recordings_and_the_refused_ones(
    recordings: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    place = recordings.parent / f"events.{suffix}"
    predict(PredictSettings(inputs=(recordings,), model="ear", gpus="no", events=place, hop_s=0.25))
    assert f"3 events in {place}\n" in capsys.readouterr().out
    read = pyarrow.csv.read_csv if suffix == "csv" else pyarrow.parquet.read_table
    rows = read(place).to_pylist()
    found = {(str(Path(row["path"]).relative_to(recordings)), row["label"]): row for row in rows if not row["error"]}
    expected = {(name, tone[0]): tone for name, tones in TONES.items() for tone in tones}
    assert found.keys() == expected.keys()
    for key, (_, start_s, end_s) in expected.items():
        assert found[key]["start_s"] == pytest.approx(start_s, abs=0.125 + 0.025)
        assert found[key]["end_s"] == pytest.approx(end_s, abs=0.125 + 0.025)
    (refused,) = [row for row in rows if row["error"]]
    assert refused["path"] == str(recordings / "broken.wav")


def test_each_good_recording_has_a_file_for_audacity_or_raven(recordings: Path) -> None:
    folder = recordings.parent / "labels"
    for form in ("audacity", "raven"):
        settings = PredictSettings(
            inputs=(recordings,), model="ear", gpus="no", events=folder, event_format=form, event_min_s=1.0
        )  # type: ignore[arg-type]
        predict(settings)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.txt")}
    parts = ("a/x.wav", "b/x.wav", "silent.wav")
    assert names == {f"{part}{end}" for part in parts for end in (".txt", ".Table.1.selections.txt")}
    (line,) = (folder / "a" / "x.wav.txt").read_text().splitlines()
    assert line.split("\t")[2] == "high"  # the other one is shorter than a second
    assert len((folder / "a" / "x.wav.Table.1.selections.txt").read_text().splitlines()) == 2
    assert (folder / "silent.wav.txt").read_text() == ""
