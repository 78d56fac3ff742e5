"""Every layout read from a few files, and every bad row named with its number."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ast_core.config import Layout
from ast_core.dataset.manifest import Clip, load_manifest
from ast_core.errors import UserError

LABELS = 'index,mid,display_name\n0,/m/a,"Speech, near"\n1,/m/b,Dog\n2,/t/c,Rain\n'


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def write(root: Path, name: str, text: str | bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)


def audioset(root: Path, rows: str | bytes, split: str = "eval") -> None:
    write(root, "class_labels_indices.csv", LABELS)
    write(root, f"{split}_segments.csv", rows)


def refusal(source: Path, layout: Layout = "auto") -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(source, layout)
    return str(caught.value)


def test_audioset(tmp_path: Path) -> None:
    audioset(tmp_path, '# three\n# comment\n# lines\n-abc, 30.000, 40.000, "/t/c,/m/a"\n_xyz, 0.000, 10.000, "/m/a"\n')
    write(tmp_path, "balanced_train_segments.csv", '\ufeff# BOM and CRLF\r\ngone, 0.5, 10.5, "/m/a"\r\n')
    touch(tmp_path, "audio/eval/Y-abc.flac", "audio/eval/-abc.m4a", "audio/eval/-abc.txt", "audio/_xyz.wav")
    manifest = load_manifest(tmp_path)
    assert manifest.labels == ("Speech, near", "Rain")
    assert (manifest.layout, manifest.single_label) == ("audioset", False)
    assert manifest.clips == (
        Clip("gone_0.5", "", (0,), "balanced_train"),
        Clip("-abc_30", str(tmp_path / "audio/eval/-abc.m4a"), (0, 1), "eval"),
        Clip("_xyz_0", str(tmp_path / "audio/_xyz.wav"), (0,), "eval"),
    )


@pytest.mark.parametrize("stem", ["id", "Yid", "id_30", "id_30.000", "Yid_30.000", "id_30000"])
@pytest.mark.parametrize("folder", ["audio/eval", "audio", "eval", "eval_segments/part0"])
def test_audioset_file_names(tmp_path: Path, stem: str, folder: str) -> None:
    audioset(tmp_path, 'id, 30.000, 40.000, "/m/a"\n')
    touch(tmp_path, f"{folder}/{stem}.OGG")
    assert load_manifest(tmp_path).clips[0].path == str(tmp_path / folder / f"{stem}.OGG")


def test_audioset_names_every_bad_row(tmp_path: Path) -> None:
    rows = [
        b'good, 0, 10, "/m/a"',
        b'good, 0, 10, "/m/a"',
        b'unknown, 0, 10, "/m/a,/m/zzz"',
        b'../../etc, 0, 10, "/m/a"',
        b"no labels, 0, 10",
        b'back, 10, 0, "/m/a"',
        b'\xff\xfe, 0, 10, "/m/a"',
        b"x" * 10_000_000,
        b'nul\0, 0, 10, "/m/a"',
        b'empty, 0, 10, ""',
        b'quote, 0, 10, "/m/a',
    ]
    audioset(tmp_path, b"\n".join(rows))
    text = refusal(tmp_path)
    assert text.startswith("10 problem(s)")
    for row in range(2, 12):
        assert f"eval_segments.csv, row {row}: " in text
    assert len(text) < 5000


def test_only_twenty_problems_are_shown_and_all_counted(tmp_path: Path) -> None:
    audioset(tmp_path, "bad row\n" * 50)
    text = refusal(tmp_path)
    assert text.count("eval_segments.csv, row ") == 20
    assert text.startswith("50 problem(s)")
    assert text.endswith("... and 30 more")


def test_links_stay_inside_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "outside/id.wav", "data/store/in.wav", "data/audio/loop0.wav")
    root = tmp_path / "data"
    audioset(root, 'in, 0, 10, "/m/a"\nout, 0, 10, "/m/a"\nloop, 0, 10, "/m/a"\n')
    (root / "audio/in.wav").symlink_to(root / "store/in.wav")
    (root / "audio/out.wav").symlink_to(tmp_path / "outside/id.wav")
    (root / "audio/loop.wav").symlink_to(root / "audio/loop.wav")
    text = refusal(root)
    assert text.startswith("1 problem(s)")
    assert "row 2: " in text
    assert "is a link out of" in text


def test_esc50(tmp_path: Path) -> None:
    write(
        tmp_path,
        "meta/esc50.csv",
        "filename,fold,target,category,esc10\n1-a.wav,1,40,helicopter,True\n2-b.wav,2,0,dog,True\n3-c.wav,5,40,helicopter,True\n",
    )
    touch(tmp_path, "audio/1-a.wav", "audio/2-b.wav")
    manifest = load_manifest(tmp_path)
    assert manifest.labels == ("dog", "helicopter")
    assert (manifest.layout, manifest.single_label) == ("esc50", True)
    assert [(c.labels, c.split, bool(c.path)) for c in manifest.clips] == [
        ((1,), "fold1", True),
        ((0,), "fold2", True),
        ((1,), "fold5", False),
    ]


def test_esc50_bad_rows(tmp_path: Path) -> None:
    rows = ["a.wav,1,0,dog", "a.wav,1,0,dog", "b.wav,x,0,dog", "c.wav,1,0,cat", "../d.wav,1,0,dog", "e.wav,1"]
    write(tmp_path, "meta/esc50.csv", "filename,fold,target,category\n" + "\n".join(rows))
    text = refusal(tmp_path)
    assert text.startswith("5 problem(s)")
    assert all(f"row {row}: " in text for row in range(3, 8))


def test_speech_commands(tmp_path: Path) -> None:
    touch(tmp_path, "yes/a.wav", "yes/b.wav", "no/c.wav", "_background_noise_/hum.wav", "README.md")
    write(tmp_path, "validation_list.txt", "yes/b.wav\n")
    write(tmp_path, "testing_list.txt", "no/c.wav\nno/gone.wav\n")
    manifest = load_manifest(tmp_path)
    assert manifest.labels == ("no", "yes")
    assert (manifest.layout, manifest.single_label) == ("speech_commands", True)
    assert [(c.clip_id, c.labels, c.split, bool(c.path)) for c in manifest.clips] == [
        ("no/c.wav", (0,), "test", True),
        ("no/gone.wav", (0,), "test", False),
        ("yes/a.wav", (1,), "train", True),
        ("yes/b.wav", (1,), "validation", True),
    ]
    write(tmp_path, "testing_list.txt", "yes/b.wav\n../up.wav\nno/../c.wav\n")
    assert refusal(tmp_path).count("testing_list.txt, row") == 3


def test_folders_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/dog/a.wav", "train/cat/b.wav", "val/dog/a.wav", "eval/cat/a.flac", "notes/read.txt")
    manifest = load_manifest(tmp_path)
    assert manifest.labels == ("cat", "dog")
    assert [(c.clip_id, c.split) for c in manifest.clips] == [
        ("eval/cat/a.flac", "test"),
        ("train/cat/b.wav", "train"),
        ("train/dog/a.wav", "train"),
        ("val/dog/a.wav", "validation"),
    ]
    touch(tmp_path, "extra/dog.wav")
    assert "this folder is not a split, but" in refusal(tmp_path)


@pytest.mark.parametrize("names", [("training", "validation", "testing"), ("Train", "Validate", "Evaluation")])
def test_further_names_of_splits_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"{name}/{label}/a.wav" for name in names for label in ("cat", "dog")))
    manifest = load_manifest(tmp_path)
    assert manifest.labels == ("cat", "dog")
    assert {clip.split for clip in manifest.clips} == {"train", "validation", "test"}


def test_a_split_with_audio_next_to_its_classes_is_refused_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, "train/dog/a.wav", "test/dog/b.wav", "test/loose.wav")
    assert "test: this folder is not a split, but train is: a split has folders for its classes" in refusal(tmp_path)


@pytest.mark.parametrize("split", ["train", ""])
def test_splits_that_differ_only_in_case_are_refused(tmp_path: Path, split: str) -> None:
    touch(tmp_path, "a.wav", "b.wav")
    write(tmp_path, "list.csv", f"path,labels,split\na.wav,dog,{split}\nb.wav,dog,Train\n")
    assert "the splits 'Train' and 'train' differ only in case" in refusal(tmp_path / "list.csv")


@pytest.mark.parametrize("pattern", ["fold{}/{}/a.wav", "class{1}/part{0}/a.wav"])
def test_folders_that_every_class_has_are_named(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, *(pattern.format(number, label) for number in range(2) for label in ("cat", "dog")))
    (note,) = load_manifest(tmp_path).notes
    assert "are read as the classes" in note
    touch(tmp_path, "cow/a.wav")
    assert not load_manifest(tmp_path).notes


def test_folders_without_splits_get_a_tenth_of_each_class(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{number}.wav" for name in ("train", "car") for number in range(300)))
    manifest = load_manifest(tmp_path)
    assert manifest.labels == ("car", "train")  # a class named as a split stays a class: audio lies in it
    counts = Counter(clip.split for clip in manifest.clips)
    assert 440 < counts["train"] < 520
    assert min(counts["validation"], counts["test"]) > 35
    (tmp_path / "car/0.wav").unlink()
    assert set(load_manifest(tmp_path).clips) < set(manifest.clips)


def tables(root: Path) -> list[Path]:
    rows = [
        {"path": "a/1.wav", "labels": ["dog", "cat"], "split": "train"},
        {"path": "a/2.wav", "labels": ["dog"], "split": "test"},
    ]
    joined = [{**row, "labels": ";".join(row["labels"])} for row in rows]
    write(root, "m.csv", "path,labels,split\n" + "".join(f"{r['path']},{r['labels']},{r['split']}\n" for r in joined))
    write(root, "m.json", json.dumps(rows))
    write(root, "m.jsonl", "\n".join(json.dumps(row) for row in joined))
    pq.write_table(pa.Table.from_pylist(rows), root / "m.parquet")
    return [root / f"m.{kind}" for kind in ("csv", "json", "jsonl", "parquet")]


def test_tables_of_every_kind_agree(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.wav")
    for source in tables(tmp_path):
        manifest = load_manifest(source)
        assert manifest.labels == ("cat", "dog"), source
        assert (manifest.layout, manifest.single_label) == ("manifest", False)
        assert manifest.clips == (
            Clip("a/1.wav", str(tmp_path / "a/1.wav"), (0, 1), "train"),
            Clip("a/2.wav", "", (1,), "test"),
        )


def test_table_bad_rows(tmp_path: Path) -> None:
    root = tmp_path / "data"
    touch(tmp_path, "out.wav")
    rows = [
        "ok.wav,dog,,",
        "ok.wav,dog,,",
        "../out.wav,dog,,",
        f"{tmp_path}/out.wav,dog,,",
        "link.wav,dog,,",
        'a.wav,"dog, cat",,',
        "b.wav,dog,,../../x",
        "c\0.wav,dog,,",
        "d.wav,dog",
        ",dog,,",
        "e" * 200_000 + ",dog,,",
    ]
    write(root, "m.csv", "path,labels,clip_id,split\n" + "\n".join(rows))
    (root / "link.wav").symlink_to(tmp_path / "out.wav")
    text = refusal(root / "m.csv")
    assert text.startswith("10 problem(s)")
    assert all(f"m.csv, row {row}: " in text for row in range(3, 13))


def test_a_table_of_one_label_a_clip_is_single_label(tmp_path: Path) -> None:
    write(tmp_path, "m.csv", f"clip_id,path,labels\nx,{tmp_path}/a.wav,dog\n")
    manifest = load_manifest(tmp_path / "m.csv")
    assert manifest.single_label
    assert manifest.clips[0].clip_id == "x"


@pytest.mark.parametrize(
    ("name", "content"), [("m.json", "{"), ("m.json", "{}"), ("m.parquet", "no"), ("m.csv", "a,b\n")]
)
def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, name, content)
    assert str(tmp_path / name) in refusal(tmp_path / name)


def test_sources_without_a_known_layout_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    assert "speech_commands" in refusal(tmp_path)
    assert "Accepted are" in refusal(tmp_path, "manifest")
    write(tmp_path, "eval_segments.csv", "# nothing\n")
    assert "class_labels_indices.csv cannot be read" in refusal(tmp_path)
    write(tmp_path, "class_labels_indices.csv", LABELS)
    assert "lists no clips" in refusal(tmp_path)
