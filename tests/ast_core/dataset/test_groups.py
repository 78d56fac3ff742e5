"""Groups by a column or a pattern, and class names that are one name in another spelling."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ast_core.dataset.manifest import load_manifest
from ast_core.dataset.stratified_split import read_group
from ast_core.errors import UserError

SPEAKERS = ("anna", "Bob", "chris", "dora", "emil", "fay")
ROWS = [
    {"path": f"{word}/{who}_{take}.wav", "labels": word, "speaker": who}
    for word in ("no", "yes") for who in SPEAKERS for take in range(3)
]  # fmt: skip


def write_csv(path: Path) -> None:
    lines = (",".join(map(str, row.values())) for row in ROWS)
    path.write_text("path,labels,speaker\n" + "\n".join(lines), encoding="utf-8")


WRITERS: dict[str, Callable[[Path], object]] = {
    "csv": write_csv,
    "json": lambda path: path.write_text(json.dumps(ROWS)),
    "jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


def make_folders(root: Path, *names: str) -> Path:
    for name in names or [row["path"] for row in ROWS]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def refusal(source: Path, group: str = "") -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(source, group=group)
    return str(caught.value)


def splits_of_groups(source: Path, group: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for clip in load_manifest(source, group=group).clips:
        found.setdefault(clip.group, set()).add(clip.split)
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_a_column_names_the_groups(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / f"m.{kind}")
    found = splits_of_groups(tmp_path / f"m.{kind}", "speaker")
    assert found.keys() == {name.lower() for name in SPEAKERS}
    assert all(len(splits) == 1 for splits in found.values())
    assert set().union(*found.values()) == {"train", "validation", "test"}


@pytest.mark.parametrize("pattern", ["^([A-Za-z]+)_", "([^/]+)_[0-9]+[.]wav$", "(?:no|yes)/(.*)_"])
def test_a_pattern_is_searched_in_file_names_or_paths(tmp_path: Path, pattern: str) -> None:
    found = splits_of_groups(make_folders(tmp_path), pattern)
    assert found.keys() == {name.lower() for name in SPEAKERS}
    assert all(len(splits) == 1 for splits in found.values())


def test_clips_without_a_group_are_counted_in_a_note(tmp_path: Path) -> None:
    make_folders(tmp_path, *(row["path"] for row in ROWS), "noise/rain.wav", "noise/wind.wav")
    manifest = load_manifest(tmp_path, group="^([A-Za-z]+)_")
    assert "6 groups" in manifest.notes[0]
    assert "2 of 38 clips have no group" in manifest.notes[0]
    assert "noise/rain.wav" in manifest.notes[0]


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("speaker", "no clip has a value in such a column"),
        ("(a)(b)", "it has 2 groups"),
        ("(", "not a regular expression"),
        ("([0-9]{9})", "matches none of the 36 clips, such as"),
    ],
)
def test_a_group_that_fits_no_clip_is_refused(tmp_path: Path, group: str, reason: str) -> None:
    assert reason in refusal(make_folders(tmp_path), group)


def test_a_group_that_given_splits_cut_is_refused(tmp_path: Path) -> None:
    make_folders(tmp_path, "train/no/anna_0.wav", "train/no/bob_0.wav", "test/no/ANNA_1.wav", "test/no/chris_0.wav")
    text = refusal(tmp_path, "^(.*)_")
    assert "the group 'anna' is in the splits test, train" in text
    assert "bob" not in text


def test_layouts_with_published_splits_take_no_group(tmp_path: Path) -> None:
    make_folders(tmp_path, "yes/a_1.wav")
    (tmp_path / "testing_list.txt").write_text("yes/a_1.wav\n")
    assert "speech_commands has splits of its own" in refusal(tmp_path, "(a)")


@pytest.mark.parametrize(
    ("cell", "group"),
    [
        ("Anna ", "anna"),
        (7, "7"),
        (7.0, "7"),
        (7.5, "7.5"),
        (float("nan"), ""),
        (None, ""),
        ("\uff21nna", "anna"),
        ("", ""),
    ],
)
def test_spellings_of_one_group_are_one_group(cell: object, group: str) -> None:
    assert read_group(cell) == group


@pytest.mark.parametrize("cell", [True, ["a"], {"a": 1}, b"a"])
def test_a_cell_that_is_no_name_is_refused(cell: object) -> None:
    with pytest.raises(ValueError, match="give a text or a number"):
        read_group(cell)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Dog", "dog"),
        (unicodedata.normalize("NFC", "caf\xe9"), unicodedata.normalize("NFD", "caf\xe9")),
        ("Stra\xdfe", "STRASSE"),
        ("\uff24og", "Dog"),
        ("sea waves", "Sea  Waves"),
        ("\u03a3\u03ac\u03c2", "\u03c3\u03ac\u03c3"),
    ],
)
def test_class_names_that_differ_only_in_spelling_are_refused_with_both_names(
    tmp_path: Path, first: str, second: str
) -> None:
    rows = [{"path": f"{n}.wav", "labels": [name]} for n, name in enumerate((first, second, "other"))]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    text = refusal(tmp_path / "m.json")
    assert text.startswith("1 problem(s)")
    assert ascii(first) in text
    assert ascii(second) in text


def test_class_folders_of_two_splits_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    make_folders(tmp_path, "train/Dog/a.wav", "test/dog/b.wav", "train/cat/a.wav", "test/cat/b.wav")
    assert "'Dog' and 'dog' differ only in case" in refusal(tmp_path)
