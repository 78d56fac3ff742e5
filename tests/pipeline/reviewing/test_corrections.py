"""Every row of the corrections is checked, and errors name the row and the value."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ast_core.dataset.clips import Clip, Manifest
from ast_core.errors import UserError
from pipeline.reviewing.corrections import read_corrections

CLIPS = tuple(Clip(f"{n}.wav", f"/d/{n}.wav", (n % 2,), "train") for n in range(4))
SINGLE = Manifest(CLIPS, ("dog", "rain, heavy"), True, "folders")
SEVERAL = Manifest(CLIPS, SINGLE.labels, False, "folders")


def write(folder: Path, *rows: str, header: str = "clip_id,corrected_labels,leave_out") -> Path:
    path = folder / "corrections.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_rows_are_relabelled_left_out_the_same_or_empty(tmp_path: Path) -> None:
    path = write(tmp_path, '0.wav,"rain, heavy",', "1.wav,,Yes", "2.wav,dog,no", "3.wav,,")
    found = read_corrections(path, SINGLE)
    assert (found.rows, found.relabelled, found.left_out, found.same, found.empty) == (
        4,
        {"0.wav": (1,)},
        {"1.wav"},
        1,
        1,
    )
    assert found.balances


def test_several_labels_and_none_are_taken_where_the_data_set_has_them(tmp_path: Path) -> None:
    found = read_corrections(write(tmp_path, '0.wav,"dog;rain, heavy",', "1.wav,;,"), SEVERAL)
    assert found.relabelled == {"0.wav": (0, 1), "1.wav": ()}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("9.wav,dog,", "the clip '9.wav' is not in the data set, which has ids such as '0.wav'"),
        ("0.wav,dgo,", "the label 'dgo' is not a class of the data set; did you mean 'dog'?"),
        ("0.wav,owl,", "the label 'owl' is not a class of the data set, whose classes are 'dog; rain, heavy'"),
        ("0.wav,dog|owl,", "the label 'owl'"),
        ('0.wav,"dog, owl",', "which may be several labels or one with a comma"),
        ('0.wav,"dog;rain, heavy",', "2 labels, but each clip of the data set has one"),
        ("0.wav,;,", "0 labels, but each clip"),
        ("0.wav,,maybe", "leave_out is 'maybe'; give yes, or leave the cell empty"),
        ("0.wav,dog,yes", "corrected_labels is 'dog', and leave_out is yes; give only one of them"),
        ("0.wav,dog", "the row has 2 cells, the header 3"),
        ("3.wav,,", "the clip '3.wav' is listed twice"),
    ],
)
def test_a_bad_row_is_an_error_with_its_number_and_value(tmp_path: Path, row: str, text: str) -> None:
    path = write(tmp_path, "3.wav,,", row)
    with pytest.raises(UserError) as raised:
        read_corrections(path, SINGLE)
    assert f"{path}, row 3: " in str(raised.value)
    assert text in str(raised.value)
    assert "1 problem(s) in the corrections" in str(raised.value)


def test_all_bad_rows_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="30 problem") as raised:
        read_corrections(write(tmp_path, *(f"x{n},dog," for n in range(30))), SINGLE)
    assert "... and 10 more" in str(raised.value)


def test_a_row_made_for_other_labels_is_refused(tmp_path: Path) -> None:
    header = "clip_id,labels,corrected_labels"
    with pytest.raises(UserError, match=r"row 2: labels is 'dog', but the clip '1.wav' has 'rain, heavy'"):
        read_corrections(write(tmp_path, "1.wav,dog,dog", header=header), SINGLE)
    assert read_corrections(write(tmp_path, '1.wav,"rain, heavy;",dog', header=header), SINGLE).relabelled == {
        "1.wav": (0,)
    }


@pytest.mark.parametrize(("header", "text"), [("id,x", "no column clip_id"), ("clip_id,x", "neither the column")])
def test_a_file_without_the_columns_is_refused(tmp_path: Path, header: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        read_corrections(write(tmp_path, "0.wav,dog", header=header), SINGLE)
    with pytest.raises(UserError, match="do not exist"):
        read_corrections(tmp_path / "none.csv", SINGLE)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_file_of_a_spreadsheet_without_commas_is_refused_with_what_to_do(tmp_path: Path, mark: str) -> None:
    header = mark.join(("clip_id", "labels", "corrected_labels"))
    with pytest.raises(UserError, match=r"no column clip_id.*save the file with commas between its columns"):
        read_corrections(write(tmp_path, mark.join(("1.wav", "rain", "dog")), header=header), SINGLE)
    with pytest.raises(UserError) as other:
        read_corrections(write(tmp_path, "1.wav", header="id"), SINGLE)
    assert "commas" not in str(other.value)


@given(st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_corrections_or_a_user_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(b"clip_id,corrected_labels,leave_out\n0.wav," + content)
    with contextlib.suppress(UserError):
        assert read_corrections(path, SEVERAL).balances
