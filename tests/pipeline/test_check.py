"""Check lists what prepare would lose or refuse, and prepares nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.check import main


def make_class(root: Path, name: str, clips: int, pitch_hz: float) -> None:
    (root / name).mkdir(parents=True)
    for number in range(clips):
        wave = 0.3 * np.sin(np.arange(4_000) * 2 * np.pi * (pitch_hz + number) / 16_000)
        soundfile.write(root / name / f"{number}.wav", wave, 16_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_class(tmp_path / "clips", "high", 6, 900)
    make_class(tmp_path / "clips", "low", 6, 200)
    return tmp_path / "clips"


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit status and all output of a check."""
    try:
        main(["--workers=2", *arguments])
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_a_good_set_has_exit_status_0_and_clips_of_each_class_and_split(folder: Path, capsys) -> None:
    before = sorted(folder.rglob("*"))
    status, text = check(capsys, str(folder))
    assert status == 0
    assert "12 clips, 12 can be used; 2 classes" in text
    assert "Warning" not in text
    row = next(line for line in text.splitlines() if "high" in line)
    assert [int(cell) for cell in row.split("│") if cell.strip().isdigit()] == [4, 1, 1, 6]
    assert sorted(folder.rglob("*")) == before


def test_every_problem_is_listed_with_its_reason(folder: Path, capsys) -> None:
    (folder / "low" / "broken.wav").write_bytes(b"RIFF" + bytes(90))
    (folder / "low" / "empty.wav").write_bytes(b"")
    (folder / "High").mkdir()
    (folder / "High" / "0.wav").write_bytes((folder / "low" / "0.wav").read_bytes())
    status, text = check(capsys, str(folder))
    assert status == 1
    assert text.count("Problem: ") == 3
    assert "broken.wav: decode" in text
    assert "empty.wav: " in text
    assert "'High' and 'high' differ only in case" in text
    assert "'High/0.wav', 'low/0.wav' are identical files with different labels" in text
    assert "without validation clips" in text
    assert "3 problem(s)" in text


def test_rows_without_a_file_and_bad_rows_are_listed_together(folder: Path, capsys) -> None:
    rows = [f"{name}/{n}.wav,{name}," for name in ("high", "low") for n in range(6)]
    table = folder / "list.csv"
    table.write_text(
        "path,labels,split\n" + "\n".join([*rows, "gone.wav,low,", "high/1.wav,low,", "up.wav,low,no/split"])
    )
    status, text = check(capsys, str(table))
    assert status == 1
    assert "gone.wav: missing: listed, but there is no file" in text
    assert "row 15: the clip 'high/1.wav' is listed twice" in text
    assert "row 16: the split 'no/split' is not a valid name" in text


def test_more_problems_than_prepare_shows_are_all_listed(folder: Path, capsys) -> None:
    for number in range(30):
        (folder / "low" / f"empty{number}.wav").write_bytes(b"")
    status, text = check(capsys, str(folder))
    assert status == 1
    assert text.count("Problem: ") == 30


def test_classes_without_test_clips_are_a_warning_and_splits_that_are_missing_a_problem(tmp_path: Path, capsys) -> None:
    make_class(tmp_path / "clips", "single", 1, 500)
    make_class(tmp_path / "clips", "pair", 2, 700)
    status, text = check(capsys, str(tmp_path / "clips"), "--data.validation-split", "")
    assert status == 0
    assert "1 of 2 classes ('single') are without test clips" in text
    status, text = check(capsys, str(tmp_path / "clips"))
    assert status == 1
    assert "has no split validation; it has test, train" in text


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path, capsys) -> None:
    status, text = check(capsys, str(tmp_path / "absent"))
    assert status == 1
    assert "does not exist" in text


def test_a_list_without_rows_is_one_problem(tmp_path: Path, capsys) -> None:
    (tmp_path / "list.csv").write_text("path,labels\n")
    status, text = check(capsys, str(tmp_path / "list.csv"))
    assert (status, text.count("Problem: ")) == (1, 1)
    assert "no clip can be read from this source" in text
