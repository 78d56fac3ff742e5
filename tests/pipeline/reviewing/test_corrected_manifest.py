"""A corrected manifest lists the same clips as the data set but for the corrections, and `prepare` reads it so."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from ast_core.config import DataConfig
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.manifest import load_source
from ast_core.dataset.source_options import options_of
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from ast_core.errors import UserError
from pipeline.reviewing.corrected_manifest import CorrectedManifest, write_corrected
from pipeline.reviewing.corrections import Corrections

WAV = b"RIFF" + bytes(40)


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(WAV)


def load(data: DataConfig) -> Manifest:
    return load_source(data.source, data.layout, options_of(data), TENTHS_OF_CLASSES)


def correct(path: Path, data: DataConfig, corrections: Corrections) -> tuple[CorrectedManifest, Manifest, Manifest]:
    before = load(data)
    done = write_corrected(path, before, corrections, data, data.source)
    return done, before, load(done.data)


@pytest.fixture
def folders(tmp_path: Path) -> DataConfig:
    """Write a data set of class folders with names that CSV must quote."""
    names = [
        f"{split}/{label}/{n}.wav"
        for split in ("train", "test")
        for label in ("zebra", 'a, "b"', "[x]")
        for n in range(3)
    ]
    write_files(tmp_path / "data", *names)
    return DataConfig(source=str(tmp_path / "data"))


def test_only_the_corrected_clips_change(tmp_path: Path, folders: DataConfig) -> None:
    before = load(folders)
    relabelled, left_out = before.clips[0].clip_id, before.clips[4].clip_id
    other = (before.labels.index("zebra"),)
    assert before.clips[0].labels != other
    done, _, after = correct(tmp_path / "run" / "new.csv", folders, Corrections(2, {relabelled: other}, {left_out}))
    wanted = [dataclasses.replace(clip, labels=other if clip.clip_id == relabelled else clip.labels)
              for clip in before.clips if clip.clip_id != left_out]  # fmt: skip
    assert list(after.clips) == wanted
    assert (after.labels, after.single_label) == (before.labels, True)
    assert (done.listed, done.clips, done.left_out, done.missing) == (18, 17, 1, 0)
    assert load(folders) == before  # the data set is as it was
    assert f"--data.source {done.path} --data.layout manifest --data.root {folders.source}" in done.flags


def test_a_class_that_lost_its_clips_stays_in_its_place(tmp_path: Path, folders: DataConfig) -> None:
    before = load(folders)
    gone = {clip.clip_id for clip in before.clips if before.labels[clip.labels[0]] == "[x]"}
    _, _, after = correct(tmp_path / "new.csv", folders, Corrections(6, {}, gone))
    assert after.labels == before.labels
    assert len(after.clips) == 12


def test_times_groups_splits_and_clips_without_a_file_are_kept_or_counted(tmp_path: Path) -> None:
    write_files(tmp_path / "data", " a.wav", "b.wav", "sub/c.wav")
    lines = [
        "path,labels,clip_id,split,start_s,end_s,speaker",
        '" a.wav",dog,one,train,0.1,1.7,S1', '" a.wav",dog;rain,two,train,2,,S1',
        "b.wav,,three,test,,,", "sub/c.wav,rain,four,valid,,,S2", "gone.wav,rain,five,test,,,S3",
    ]  # fmt: skip
    source = tmp_path / "data" / "list.csv"
    source.write_text("\n".join(lines) + "\n")
    data = DataConfig(source=str(source), group="speaker")
    done, before, after = correct(tmp_path / "data" / "new.csv", data, Corrections(1, {"one": (1,)}))
    assert (done.listed, done.clips, done.missing) == (5, 4, 1)
    kept = [clip for clip in before.clips if clip.path]
    assert list(after.clips) == [dataclasses.replace(kept[0], labels=(1,)), *kept[1:]]
    assert [clip.group for clip in after.clips] == ["s1", "s1", "", "s2"]
    assert "--data.root" not in done.flags  # the new list is next to the old one
    assert "--data.group group" in done.flags


def test_recordings_in_a_further_folder_are_found(tmp_path: Path) -> None:
    write_files(tmp_path / "far", "a.wav", "b.wav")
    (tmp_path / "lists").mkdir()
    source = tmp_path / "lists" / "list.csv"
    source.write_text("path,labels,split\na.wav,dog,train\nb.wav,rain,test\n")
    data = DataConfig(source=str(source), root=(str(tmp_path / "far"),))
    done, before, after = correct(tmp_path / "run" / "new.csv", data, Corrections(1, {"a.wav": (1,)}))
    assert [clip.path for clip in after.clips] == [clip.path for clip in before.clips]
    assert done.data.root == (str(tmp_path / "lists"), str(tmp_path / "far"))


def test_no_list_is_overwritten_and_only_csv_is_written(tmp_path: Path, folders: DataConfig) -> None:
    before = load(folders)
    (tmp_path / "old.csv").write_text("mine")
    for name, text in (("old.csv", r"old\.csv exists"), ("new.json", r"ends in \.csv")):
        with pytest.raises(UserError, match=text):
            write_corrected(tmp_path / name, before, Corrections(), folders, folders.source)
    assert (tmp_path / "old.csv").read_text() == "mine"
    with pytest.raises(UserError, match="leave no clip"):
        write_corrected(
            tmp_path / "n.csv", before, Corrections(0, {}, {c.clip_id for c in before.clips}), folders, folders.source
        )


def test_what_csv_cannot_hold_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    write_files(tmp_path / "data", "train/a;b/1.wav", "train/c/1.wav", "test/a;b/2.wav")
    data = DataConfig(source=str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"was removed|not in this list"):
        correct(tmp_path / "new.csv", data, Corrections())
    assert not list(tmp_path.glob("new*"))


def test_recordings_inside_other_files_are_refused(tmp_path: Path) -> None:
    manifest = Manifest((Clip("a", "/d/train.parquet", (0,), "train", member=(0, 1)),), ("dog",), True, "parquet")
    with pytest.raises(UserError, match=r"inside files such as /d/train.parquet, which a manifest cannot name"):
        write_corrected(tmp_path / "new.csv", manifest, Corrections(), DataConfig(source="/d"), "/d")


def test_another_file_of_the_same_name_next_to_the_new_list_is_noticed(tmp_path: Path, folders: DataConfig) -> None:
    write_files(tmp_path / "other", "train/zebra/0.wav")
    with pytest.raises(UserError, match="folder without recordings"):
        correct(tmp_path / "other" / "new.csv", folders, Corrections())
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["train"]


def test_the_classes_file_names_every_class(tmp_path: Path, folders: DataConfig) -> None:
    done, before, _ = correct(tmp_path / "new.csv", folders, Corrections())
    with (tmp_path / "new.classes.csv").open(newline="") as file:
        assert [row["display_name"] for row in csv.DictReader(file)] == list(before.labels)
    assert done.data.label_names == str(tmp_path / "new.classes.csv")
