"""The inputs of predict: every file is a recording or is counted, and a walk has the order of sorted paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ast_core.dataset.problems import UnlistedCounts
from ast_core.errors import UserError
from ast_core.storage.name_set import NameSet
from pipeline.prediction import recording_walk
from pipeline.prediction.input_listing import InputListing

NAME = st.text("ab.-*[1", min_size=1, max_size=4).filter(lambda name: name not in {".", ".."})


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_every_file_of_a_folder_is_listed_or_counted(tmp_path: Path) -> None:
    touch(tmp_path, "memo.m4a", "_x/a.wav", ".x/b.wav", "notes.txt", "sub/c.WAVE", "sub/picture.png")
    soundfile.write(tmp_path / "sub" / "recording", [0.1] * 100, 16_000, format="FLAC")
    (tmp_path / "loop").symlink_to(tmp_path)
    listing = InputListing([str(tmp_path)])
    names = [".x/b.wav", "_x/a.wav", "memo.m4a", "sub/c.WAVE", "sub/recording"]
    assert [clip.clip_id for clip in listing] == [f"{tmp_path}/{name}" for name in names]
    assert listing.notes == [
        f"{tmp_path}: 1 folder is links, which are not followed (name them to read them), for example loop",
        f"{tmp_path}: 2 files are not audio, for example notes.txt, sub/picture.png",
    ]
    assert listing.holds(f"{tmp_path}/memo.m4a")
    assert not listing.holds(f"{tmp_path}/notes.txt")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.lists(NAME, min_size=1, max_size=3).map("/".join), max_size=12), at_once=st.integers(1, 3))
def test_a_walk_yields_all_files_in_the_order_of_sorted_paths(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, names: set[str], at_once: int
) -> None:
    root = tmp_path_factory.mktemp("walk")
    for name in sorted(names):
        try:
            touch(root, name)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            continue  # the name of a file is that of another one's folder
    monkeypatch.setattr(recording_walk, "_NAMES_AT_ONCE", at_once)
    found = list(recording_walk.walk_files(str(root), UnlistedCounts(str(root))))
    assert found == [str(path) for path in sorted(root.rglob("*")) if path.is_file()]


def test_names_that_are_no_utf8_and_names_with_wildcards_are_listed(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff.wav")
    touch(tmp_path, odd, "a[1].wav")
    assert {clip.clip_id for clip in InputListing([str(tmp_path)])} == {f"{tmp_path}/{odd}", f"{tmp_path}/a[1].wav"}
    assert [clip.clip_id for clip in InputListing([f"{tmp_path}/a[1].wav"])] == [f"{tmp_path}/a[1].wav"]
    with pytest.raises(UserError, match="No audio file matches"):
        list(InputListing([f"{tmp_path}/b[1].wav"]))


def test_a_set_of_names_holds_exactly_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ast_core.storage.name_set._RECENT", 7)
    names = NameSet()
    assert all(names.add(f"{number}\udcff") for number in range(200))
    assert not any(names.add(f"{number}\udcff") for number in range(0, 200, 3))
    assert all(f"{number}\udcff" in names for number in range(200))
    assert not any(f"{number}" in names for number in range(200))
    assert len(names) == 200
