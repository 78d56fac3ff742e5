"""Parquet files with the recordings inside are listed from their small columns, whatever the layout of the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_recordings import AUDIO, GROUP, TEXTS, class_label, features, recording, write

from ast_core.dataset import layouts
from ast_core.dataset.clip_list import cover
from ast_core.dataset.contents.clip_contents import read_contents
from ast_core.dataset.manifest import Clip, Columns, Manifest, detect_layout, load_manifest
from ast_core.dataset.parquet.parquet_audio import find_audio_column, list_parquet_members
from ast_core.dataset.problems import Problems
from ast_core.dataset.source_files import find_source_files
from ast_core.dataset.source_options import SourceOptions
from ast_core.errors import UserError

LIST = 'index,mid,display_name\n0,/m/c,Rain\n1,/m/a,"Speech, near"\n2,/m/x,Unused\n3,/m/b,Dog\n'


def refusal(source: Path | str, layout: Any = "auto", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(source, layout, **options)
    return str(caught.value)


def named_labels(manifest: Manifest) -> list[list[str]]:
    return [[manifest.labels[label] for label in clip.labels] for clip in manifest.clips]


def write_copy(root: Path, folder: str, ids: list[str], labels: list[list[str]], human: list[list[str]] | None) -> Path:
    columns: dict[str, Any] = {
        "video_id": ids,
        "audio": [recording(number, f"{name}.flac") for number, name in enumerate(ids)],
        "labels": labels,
    }
    if human is not None:
        columns["human_labels"] = human
    return write(root / "data" / folder / "00.parquet", columns)


def test_hugging_face_layout_gives_names_splits_ids_and_members(tmp_path: Path) -> None:
    kinds = features(audio={"_type": "Audio"}, label=class_label("yes", "no", "unused"))
    for split, numbers in {"train": range(5), "validation": range(5, 7), "test": range(7, 9)}.items():
        columns = {"audio": [recording(n) for n in numbers], "label": [n % 2 for n in numbers]}
        write(tmp_path / f"data/{split}-00000-of-00001.parquet", columns, metadata=kinds)
    (tmp_path / "README.md").write_text("not a recording")
    manifest = load_manifest(tmp_path)
    assert (manifest.layout, manifest.audio_column, manifest.single_label) == ("parquet", "audio", True)
    assert manifest.labels == ("yes", "no")
    by_id = {clip.clip_id: clip for clip in manifest.clips}
    assert {clip.split for clip in manifest.clips} == {"train", "validation", "test"}
    train = str(tmp_path / "data/train-00000-of-00001.parquet")
    assert by_id["r4.flac"] == Clip("r4.flac", train, (0,), "train", member=(1, 1))
    assert by_id["r5.flac"].split == "validation"
    assert [counts.sentence for counts in manifest.unlisted] == ["1 file is not audio, for example README.md"]


def test_members_lead_to_the_recordings_of_their_rows(tmp_path: Path) -> None:
    cells = [recording(number) for number in range(8)]
    write(tmp_path / "a.parquet", {"audio": cells, "labels": [["x"]] * 8})
    manifest = load_manifest(tmp_path)
    found = list(read_contents(manifest.clips, manifest.audio_column))
    assert [content for _, content in found] == [cell["bytes"] for cell in cells]


@pytest.mark.parametrize(
    ("values", "kind", "kinds", "expected"),
    [
        ([["b", "a"], [], ["a"]], TEXTS, None, [["a", "b"], [], ["a"]]),
        (["a", "b;a", "b"], pa.large_string(), None, [["a"], ["a", "b"], ["b"]]),
        (["a", "Speech, near", "a|b"], pa.string(), None, [["a"], ["Speech, near"], ["a", "b"]]),
        ([10, 9, 9], pa.int64(), None, [["10"], ["9"], ["9"]]),
        ([1, 0, 1], pa.int64(), class_label("a", "b"), [["b"], ["a"], ["b"]]),
        ([[1, 0], [], [0]], pa.list_(pa.int64()), {"_type": "Sequence", "feature": class_label("b", "a")}, None),
        ([[1, 0], [], [0]], pa.list_(pa.int64()), {"_type": "List", "feature": class_label("b", "a")}, None),
        ([[1, 0], [], [0]], pa.list_(pa.int64()), [class_label("b", "a")], None),
    ],
)
def test_labels_of_every_type_are_read(tmp_path: Path, values: Any, kind: Any, kinds: Any, expected: Any) -> None:
    columns = {"audio": [recording(n) for n in range(3)], "label": values}
    write(tmp_path / "a.parquet", columns, {"label": kind}, kinds and features(label=kinds))
    assert named_labels(load_manifest(tmp_path)) == (expected or [["b", "a"], [], ["b"]])


def test_labels_in_a_dictionary_are_read(tmp_path: Path) -> None:
    labels = pa.array(["a", "b", "a"]).dictionary_encode()
    write(tmp_path / "a.parquet", {"audio": [recording(n) for n in range(3)], "label": labels})
    assert named_labels(load_manifest(tmp_path)) == [["a"], ["b"], ["a"]]


def test_integers_without_names_are_sorted_by_number_and_noted(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"audio": [recording(n) for n in range(3)], "label": [10, 9, 100]})
    manifest = load_manifest(tmp_path)
    assert manifest.labels == ("9", "10", "100")
    assert "classes are named by their integers" in manifest.notes[0]


def test_a_binary_column_and_named_columns_are_read(tmp_path: Path) -> None:
    columns = {"blob": [b"x", b"y"], "kind": ["a", "b"], "part": ["train", "test"], "other": [1.5, 2.5]}
    source = write(tmp_path / "a.parquet", columns, {"blob": pa.binary()})
    assert "a.parquet has 0 columns named path" in refusal(source)  # without a name it is taken for a manifest
    text = refusal(source, "parquet")
    assert "blob (binary), kind (string), part (string), other (double)" in text
    assert "--data.audio-column" in text
    text = refusal(source, "parquet", columns=Columns(audio="blob"))
    assert "--data.label-column" in text
    assert "other (double)" in text
    assert "has no column 'kin'" in refusal(source, "parquet", columns=Columns("kin", "blob"))
    manifest = load_manifest(source, "parquet", columns=Columns("kind", "blob", "part"))
    assert manifest.audio_column == "blob"
    assert [(clip.clip_id, clip.split) for clip in manifest.clips] == [
        ("a.parquet#1", "train"),
        ("a.parquet#2", "test"),
    ]
    assert manifest.notes == ("columns that are not read: 'other'",)


def test_integer_splits_are_named_by_their_column(tmp_path: Path) -> None:
    columns = {"audio": [recording(n) for n in range(3)], "category": ["a", "b", "a"], "fold": [1, 2, 3]}
    source = write(tmp_path / "a.parquet", columns)
    manifest = load_manifest(source, columns=Columns(split="fold"))
    assert [clip.split for clip in manifest.clips] == ["fold1", "fold2", "fold3"]


def test_clips_without_a_split_are_placed_by_their_ids(tmp_path: Path) -> None:
    columns = {"clip_id": [f"c{n}" for n in range(60)], "audio": [recording(n) for n in range(60)]}
    write(tmp_path / "a.parquet", columns | {"labels": [["x"]] * 60})
    splits = [clip.split for clip in load_manifest(tmp_path).clips]
    assert {"train", "validation", "test"} == set(splits)


def test_groups_are_a_column_or_a_pattern_on_the_ids(tmp_path: Path) -> None:
    columns = {"id": [f"s{n % 5}_{n}" for n in range(30)], "audio": [recording(n) for n in range(30)]}
    write(tmp_path / "a.parquet", columns | {"labels": [["x"]] * 30, "speaker": [n % 5 for n in range(30)]})
    by_column, by_pattern = (load_manifest(tmp_path, group=group) for group in ("speaker", "^(s[0-9])_"))
    assert [clip.group for clip in by_column.clips[:6]] == ["0", "1", "2", "3", "4", "0"]
    for manifest in (by_column, by_pattern):
        splits: dict[str, set[str]] = {}
        for clip in manifest.clips:
            splits.setdefault(clip.group, set()).add(clip.split)
        assert len(splits) == 5
        assert all(len(own) == 1 for own in splits.values())


def test_repeated_stored_names_become_file_and_row_but_repeated_ids_are_problems(tmp_path: Path) -> None:
    audio = [recording(0, "a.wav"), recording(1, "b.wav"), recording(2, "a.wav"), {"bytes": b"x", "path": None}]
    source = write(tmp_path / "x.parquet", {"audio": audio, "labels": [["l"]] * 4})
    assert [clip.clip_id for clip in load_manifest(source).clips] == [
        "x.parquet#1", "b.wav", "x.parquet#3", "x.parquet#4",
    ]  # fmt: skip
    source = write(tmp_path / "x.parquet", {"id": [1, 2, 1, 3], "audio": audio, "labels": [["l"]] * 4})
    assert "x.parquet, row 3: the clip '1' is listed twice" in refusal(source)


def test_times_make_segments_of_rows(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "audio": [recording(0)] * 2, "labels": [["l"]] * 2}
    source = write(tmp_path / "x.parquet", columns | {"start_s": [0.0, 1.5], "end_s": [1.5, None]})
    assert [(clip.start_s, clip.end_s) for clip in load_manifest(source).clips] == [(0.0, 1.5), (1.5, None)]
    source = write(tmp_path / "x.parquet", columns | {"start_s": [0.0, 1.5], "end_s": [1.5, 1.0]})
    assert "row 2: end_s is 1" in refusal(source)


@pytest.mark.parametrize("bare", [False, True])
def test_a_row_without_bytes_is_a_clip_without_a_file(tmp_path: Path, bare: bool) -> None:
    cells = [recording(n) for n in range(10)]
    for place in (1, 6, 7, 8):
        cells[place] = {"bytes": None, "path": f"r{place}.flac"} if place != 7 else None  # type: ignore[call-overload]
    audio = pa.array([cell and cell["bytes"] for cell in cells], pa.binary()) if bare else pa.array(cells, AUDIO)
    ids = [f"c{n}" for n in range(10)]
    source = write(tmp_path / "x.parquet", {"id": ids, "audio": audio, "labels": [["l"]] * 10})
    clips = load_manifest(source).clips
    assert [number for number, clip in enumerate(clips) if not clip.path] == [1, 6, 7, 8]
    assert all((clip.member is None) == (not clip.path) for clip in clips)
    assert clips[9].member == (3, 0)


def test_listing_does_not_read_the_recordings(tmp_path: Path) -> None:
    """The pages of the recordings are overwritten, and the listing stays the same."""
    source = write(tmp_path / "x.parquet", {"audio": [recording(n) for n in range(9)], "labels": [["l"]] * 9})
    before = load_manifest(source)
    metadata = pq.read_metadata(source)
    content = bytearray(source.read_bytes())
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        assert column.path_in_schema == "audio.bytes"
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    source.write_bytes(bytes(content))
    assert load_manifest(source) == before


def test_one_large_row_group_is_listed_in_parts(tmp_path: Path) -> None:
    rows = 20_000
    columns = {"id": range(rows), "audio": [recording(0)] * rows, "label": [n % 2 for n in range(rows)]}
    source = write(tmp_path / "x.parquet", columns, row_group_size=rows)
    clips = load_manifest(source).clips
    assert [clip.member for clip in clips] == [(0, row) for row in range(rows)]


def good(rows: int = 4, **more: Any) -> dict[str, Any]:
    return {"id": [f"c{n}" for n in range(rows)], "audio": [recording(n) for n in range(rows)], **more}


@pytest.mark.parametrize(
    ("columns", "types", "metadata", "expected"),
    [
        ({"labels": [["a"], None, ["a"], ["a"]]}, {}, {}, "row 2: the label is null; give an empty list"),
        ({"labels": [["a"], ["a"], ["a", None], ["a"]]}, {}, {}, "row 3: a label is null"),
        ({"labels": [["a"], ["a"], ["a"], [" "]]}, {}, {}, "row 4: a label is empty"),
        ({"labels": [["a\nb"]] * 4}, {}, {}, "row 1: the label 'a\\nb' has characters that cannot be printed"),
        ({"labels": [["a" * 501]] * 4}, {}, {}, "row 1: the label"),
        (
            {"label": [0, 1, 2, -1]},
            {},
            {"label": class_label("a", "b")},
            "row 3: the label is 2, but the file's metadata",
        ),
        ({"label": [0, 1, 0, -1]}, {}, {"label": class_label("a", "b")}, "row 4: the label is -1"),
        ({"label": [0, 1, 0, -1]}, {}, {}, "row 4: the label is -1; give 0 or more"),
        ({"label": [0, 1, 0, 1]}, {}, {"label": class_label("a", "a")}, "names two classes 'a' in the metadata"),
        ({"label": [0, 1, 0, 1]}, {}, {"label": {"_type": "ClassLabel", "names": 7}}, "names are a list of texts"),
        ({"label": [0.5, 1, 0, 1]}, {}, {}, "has labels of the type double in the column 'label'"),
        ({"labels": [["a"]] * 4, "id": ["x", "y", "x", "z"]}, {}, {}, "row 3: the clip 'x' is listed twice"),
        ({"labels": [["a"]] * 4, "id": ["x", "y", None, ""]}, {}, {}, "row 4: id is empty"),
        ({"labels": [["a"]] * 4, "id": ["x", "y\0", "z", "w"]}, {}, {}, "row 2: the clip id 'y\\x00'"),
        ({"labels": [["a"]] * 4, "id": ["x" * 5000, "y", "z", "w"]}, {}, {}, "longer than 4096 characters"),
        ({"labels": [["a"]] * 4, "split": ["train", "../x", "test", None]}, {}, {}, "row 2: the split '../x' is not"),
        ({"labels": [["a"]] * 4, "split": [0.5] * 4}, {}, {}, "has splits of the type double"),
        ({"labels": [[]] * 4}, {}, {}, "no row has a label"),
    ],
)
def test_bad_rows_and_columns_are_named(
    tmp_path: Path, columns: dict[str, Any], types: dict[str, Any], metadata: dict[str, Any], expected: str
) -> None:
    source = write(tmp_path / "x.parquet", good(**columns), types, features(**metadata))
    text = refusal(tmp_path)
    assert expected in text
    assert str(source) in text or expected.startswith("no row")


def test_texts_that_are_not_utf8_are_problems_of_their_rows(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xff\xfe", b"c", b"d"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    source = write(tmp_path / "x.parquet", good(label=bad))
    assert "x.parquet, row 2: the labels are not UTF-8" in refusal(source)
    source = write(tmp_path / "x.parquet", good(label=["a"] * 4) | {"id": bad})
    assert "x.parquet, row 2: the clip id is not UTF-8" in refusal(source)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "zero"])
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "b.parquet", good(label=["a"] * 4))
    bad = write(tmp_path / "a.parquet", good(label=["a"] * 4))
    content = bad.read_bytes()
    changed = {
        "empty": b"",
        "text": b"not Parquet",
        "cut": content[:-100],
        "zero": content[:4] + bytes(len(content) - 12) + content[-8:],
    }
    bad.write_bytes(changed[damage])
    text = refusal(tmp_path)
    assert text.startswith("1 problem(s)")
    assert str(bad) in text


def test_files_with_other_columns_are_problems(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", good(label=[0] * 4), metadata=features(label=class_label("a")))
    for name, columns in {
        "b": {"audio": [recording(1)], "label": ["text"], "id": ["b"]},
        "c": {"audio": [b"x"], "label": [0], "id": ["c"]},
        "d": {"audio": [recording(1)], "label": [0], "id": ["d"]},
        "e": {"other": [1]},
    }.items():
        types = {"audio": pa.binary()} if name == "c" else {}
        write(tmp_path / f"{name}.parquet", columns, types)
    text = refusal(tmp_path)
    assert text.startswith("4 problem(s)")
    assert "b.parquet: the columns differ from those of a.parquet: label_kind text instead of integer" in text
    assert "c.parquet: the columns differ from those of a.parquet: content audio instead of audio.bytes" in text
    assert "d.parquet: either this file or a.parquet has no names of the classes" in text
    assert "e.parquet: the file has no column that is recognised as recordings" in text


def test_a_file_in_no_split_is_a_problem_where_others_have_one(tmp_path: Path) -> None:
    write(tmp_path / "train/a.parquet", good(labels=[["a"]] * 4))
    write(tmp_path / "more/b.parquet", {"id": ["x"], "audio": [recording(1)], "labels": [["a"]]})
    text = refusal(tmp_path)
    assert text.startswith("1 problem(s)")
    assert "b.parquet: no folder or file name says the split" in text


def test_a_file_without_rows_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", good(labels=[["a"]] * 4))
    write(tmp_path / "b.parquet", good(0, labels=[]), {"id": pa.string()})
    manifest = load_manifest(tmp_path)
    assert len(manifest.clips) == 4
    assert manifest.unlisted[0].sentence == "1 file is Parquet without rows, for example b.parquet"
    (tmp_path / "a.parquet").unlink()
    assert "lists no clips" in refusal(tmp_path)


def test_the_audioset_copy_has_the_splits_ids_and_names_of_the_lists(tmp_path: Path) -> None:
    write_copy(tmp_path, "bal_train", ["-a_b"], [["/m/a", "/m/b"]], [["Speech, near", "Dog"]])
    write_copy(tmp_path, "unbal_train", ["_x", "y"], [["/m/b"], ["/m/c"]], [["Dog"], ["Rain", "Wind"]])
    write_copy(tmp_path, "eval", ["z"], [["/m/c"]], [[]])
    manifest = load_manifest(tmp_path)
    assert manifest.layout == "audioset"
    assert not manifest.single_label
    assert manifest.labels == ("/m/c", "Dog", "Speech, near")
    assert "1 labels such as /m/c have no display name in human_labels" in manifest.notes[-1]
    assert [(c.clip_id, c.split) for c in manifest.clips] == [
        ("-a_b", "balanced_train"), ("z", "eval"), ("_x", "unbalanced_train"), ("y", "unbalanced_train"),
    ]  # fmt: skip


def test_without_names_the_machine_ids_are_the_names(tmp_path: Path) -> None:
    write_copy(tmp_path, "eval", ["z", "y"], [["/m/c"], ["/m/a"]], None)
    assert load_manifest(tmp_path).labels == ("/m/a", "/m/c")


def test_a_list_of_classes_fixes_names_and_order(tmp_path: Path) -> None:
    write_copy(tmp_path, "eval", ["z", "y"], [["/m/c"], ["/m/b", "/m/a"]], None)
    (tmp_path / "class_labels_indices.csv").write_text(LIST)
    nearby = load_manifest(tmp_path)
    assert nearby.labels == ("Rain", "Speech, near", "Dog")
    assert not nearby.unlisted
    (tmp_path / "class_labels_indices.csv").rename(tmp_path.parent / f"{tmp_path.name}.csv")
    given = load_manifest(tmp_path, label_names=str(tmp_path.parent / f"{tmp_path.name}.csv"))
    assert given.labels == ("Rain", "Speech, near", "Unused", "Dog")
    assert [clip.labels for clip in given.clips] == [(0,), (1, 3)]


def test_contradictory_names_are_problems_with_their_row(tmp_path: Path) -> None:
    human = [["Dog"], ["Cat"], ["Dog"]]
    write_copy(tmp_path, "eval", ["x", "y", "z"], [["/m/b"], ["/m/b"], ["/m/a"]], human)
    text = refusal(tmp_path)
    assert text.startswith("2 problem(s)")
    assert "00.parquet, row 2: human_labels names '/m/b' 'Cat', but an earlier row names it 'Dog'" in text
    assert "00.parquet, row 3: human_labels names '/m/a' 'Dog', which is the name of another label" in text
    (tmp_path / "class_labels_indices.csv").write_text(LIST)
    text = refusal(tmp_path)
    assert "row 3: human_labels names '/m/a' 'Dog', but " in text
    assert "class_labels_indices.csv names it 'Speech, near'" in text


def test_a_machine_id_that_the_list_lacks_is_a_problem(tmp_path: Path) -> None:
    write_copy(tmp_path, "eval", ["x", "y"], [["/m/b"], ["/m/zz"]], None)
    (tmp_path / "class_labels_indices.csv").write_text(LIST)
    assert "row 2: the label '/m/zz' is not in " in refusal(tmp_path)


def test_a_file_of_the_copy_in_no_split_is_a_problem(tmp_path: Path) -> None:
    write_copy(tmp_path, "other", ["x"], [["/m/b"]], [["Dog"]])
    assert "put it below bal_train, unbal_train or eval" in refusal(tmp_path)


def test_the_copy_is_the_same_data_as_the_loose_layout(tmp_path: Path) -> None:
    """Google's lists with loose files, and the copy made of them, give the same clips, labels and splits."""
    loose, copy = tmp_path / "loose", tmp_path / "copy"
    ids = {"balanced_train": ["-a", "b_c"], "unbalanced_train": ["d", "e"], "eval": ["f"]}
    folders = {"balanced_train": "bal_train", "unbalanced_train": "unbal_train", "eval": "eval"}
    mids = {"-a": ["/m/a"], "b_c": ["/m/b", "/m/a"], "d": ["/m/c"], "e": ["/m/b"], "f": ["/m/c", "/m/b"]}
    names = {"/m/a": "Speech, near", "/m/b": "Dog", "/m/c": "Rain"}
    for folder in (loose, copy):
        folder.mkdir()
        (folder / "class_labels_indices.csv").write_text(LIST)
    for split, own in ids.items():
        rows = "".join(f'{name}, 30.000, 40.000, "{",".join(mids[name])}"\n' for name in own)
        (loose / f"{split}_segments.csv").write_text(rows)
        (loose / "audio" / split).mkdir(parents=True)
        for name in own:
            (loose / "audio" / split / f"Y{name}.flac").write_bytes(b"x")
        labels = [mids[name] for name in own]
        write_copy(copy, folders[split], own, labels, [[names[mid] for mid in row] for row in labels])
    first, second = load_manifest(loose), load_manifest(copy)
    assert first.labels == second.labels
    seen = [
        {(clip.clip_id.removesuffix("_30"), clip.labels, clip.split) for clip in manifest.clips}
        for manifest in (first, second)
    ]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 5


def test_a_list_of_segments_covers_clips_named_by_their_videos() -> None:
    clips = ["abcdefghijk", "-_ab_defghi", "short"]
    found = cover(["abcdefghijk_30", "-_ab_defghi_0.5", "short_3", "abcdefghijz_30"], clips)
    assert found.indices_N.tolist() == [0, 1]
    assert found.absent == ("short_3", "abcdefghijz_30")


def test_given_classes_fix_the_labels_of_other_layouts(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text(LIST)
    for name in ("Dog", "Rain"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.wav").write_bytes(b"x")
    manifest = load_manifest(tmp_path / "data", label_names=str(tmp_path / "names.csv"))
    assert manifest.labels == ("Rain", "Speech, near", "Unused", "Dog")
    assert [clip.labels for clip in manifest.clips] == [(3,), (0,)]
    (tmp_path / "data" / "Cat").mkdir()
    (tmp_path / "data" / "Cat" / "a.wav").write_bytes(b"x")
    assert "the label 'Cat' of the data is not in this list" in refusal(
        tmp_path / "data", label_names=str(tmp_path / "names.csv")
    )
    assert "does not exist" in refusal(tmp_path / "data", label_names=str(tmp_path / "no.csv"))


@pytest.mark.parametrize("text", ["mid,display_name\n,x\n", "mid,display_name\na,x\nb,x\n", "a,b\n1,2\n"])
def test_a_bad_list_of_classes_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    write(tmp_path / "data/x.parquet", good(labels=[["x"]] * 4))
    assert "names.csv, row " in refusal(tmp_path / "data", label_names=str(tmp_path / "names.csv"))


def test_files_globs_and_uris_list_the_same(tmp_path: Path) -> None:
    for split in ("train", "test"):
        ids = {"id": [f"{split}{n}" for n in range(4)]}
        write(tmp_path / f"data/{split}/a.parquet", good(labels=[["a"]] * 4) | ids)
    (tmp_path / "data/train/_SUCCESS").write_bytes(b"")
    (tmp_path / "data/train/.hidden.parquet").write_bytes(b"")
    folder = load_manifest(tmp_path / "data")
    uri = load_manifest(f"file://{tmp_path}/data")
    for other in (
        load_manifest(f"{tmp_path}/data/*/*.parquet"),
        load_manifest(f"{tmp_path}/**/[a-z]*.parquet"),
        uri,
        load_manifest(f"file://{tmp_path}/data/**/*.parquet"),
        load_manifest(f"file://{tmp_path}/data/t[re]*/[!b].parquet"),
    ):
        assert [(c.clip_id, c.labels, c.split, c.member) for c in other.clips] == [
            (c.clip_id, c.labels, c.split, c.member) for c in folder.clips
        ]
    assert uri.clips[0].path == f"file://{folder.clips[0].path}"
    assert sum(counts.count for counts in folder.unlisted) == sum(counts.count for counts in uri.unlisted) == 2
    one = load_manifest(f"file://{tmp_path}/data/train/a.parquet")
    assert [clip.member for clip in one.clips] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert "does not exist" in refusal(f"file://{tmp_path}/nothing")
    assert "does not exist" in refusal(f"{tmp_path}/nothing/*.parquet")
    assert "holds keys" in refusal("s3://key:secret@bucket/folder")
    assert "data.root" in refusal(f"file://{tmp_path}/data", roots=[tmp_path])


def test_links_out_of_the_source_need_permission(tmp_path: Path) -> None:
    """A download of Hugging Face's hub consists of links to files elsewhere."""
    blob = write(tmp_path / "blobs/0123", good(labels=[["a"]] * 4))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/train.parquet").symlink_to(blob)
    assert "is a link out of" in refusal(tmp_path / "snapshot", "parquet")
    assert "is a link out of" in refusal(tmp_path / "snapshot")
    assert len(load_manifest(tmp_path / "snapshot", follow_links=True).clips) == 4
    assert len(load_manifest(tmp_path / "snapshot", roots=[tmp_path / "blobs"]).clips) == 4


def test_layouts_are_recognised(tmp_path: Path) -> None:
    """A table without recordings stays a manifest, and class folders stay class folders."""
    table = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["a.wav"], "labels": ["x"], "embedding": [b"x"]}), table)
    assert detect_layout(table) == "manifest"
    assert detect_layout(write(tmp_path / "one/a.parquet", good(labels=[["a"]] * 4))) == "parquet"
    assert detect_layout(tmp_path / "one") == "parquet"
    write_copy(tmp_path / "copy", "eval", ["z"], [["/m/c"]], [["Rain"]])
    assert detect_layout(tmp_path / "copy") == detect_layout(tmp_path / "copy/data/eval/00.parquet") == "audioset"
    (tmp_path / "one/dog").mkdir()
    (tmp_path / "one/dog/a.wav").write_bytes(b"x")
    assert detect_layout(tmp_path / "one") == "folders"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("audio", AUDIO), ("image", AUDIO)], "audio"),
        ([("sound", AUDIO)], "sound"),
        ([("clip", AUDIO), ("picture", AUDIO)], ""),
        ([("audio", pa.binary()), ("embedding", pa.binary())], "audio"),
        ([("embedding", pa.binary())], ""),
        ([("fbank", pa.binary(8))], ""),
        ([("audio", pa.list_(pa.float32()))], ""),
    ],
)
def test_the_column_of_recordings_is_found_by_type_and_name(fields: list[Any], expected: str) -> None:
    assert find_audio_column(pa.schema(fields)) == expected


def test_declared_audio_is_preferred(tmp_path: Path) -> None:
    schema = pa.schema([("clip", AUDIO), ("picture", AUDIO)], features(clip={"_type": "Audio"}))
    assert find_audio_column(schema) == "clip"
    assert find_audio_column(schema, "picture") == "picture"
    assert find_audio_column(schema, "other") == ""


def test_members_of_a_file_are_listed_without_labels(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"audio": [recording(n) for n in range(4)]})
    members = list(list_parquet_members(str(source)))
    assert members == [("r0.flac", (0, 0)), ("r1.flac", (0, 1)), ("r2.flac", (0, 2)), ("r3.flac", (1, 0))]
    assert list(list_parquet_members(f"file://{source}")) == members
    source = write(tmp_path / "y.parquet", {"wav": [b"a", b"b"]}, {"wav": pa.binary()})
    assert list(list_parquet_members(str(source))) == [("y.parquet#1", (0, 0)), ("y.parquet#2", (0, 1))]
    with pytest.raises(UserError, match="no column that is recognised"):
        list(list_parquet_members(str(source), "other"))


def test_rows_of_many_files_keep_their_order_from_a_store(tmp_path: Path) -> None:
    for number in range(25):
        columns = {"id": [f"{number}-{row}" for row in range(4)], "audio": [recording(row) for row in range(4)]}
        write(tmp_path / f"{number:02d}.parquet", columns | {"labels": [["a"]] * 4})
    local, remote = load_manifest(tmp_path), load_manifest(f"file://{tmp_path}")
    assert [clip.clip_id for clip in local.clips] == [clip.clip_id for clip in remote.clips]
    assert len(local.clips) == 100


def test_folders_that_begin_with_a_dot_or_underscore_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", good(labels=[["a"]] * 4))
    write(tmp_path / "_old/b.parquet", good(labels=[["a"]] * 4))
    (tmp_path / "x.wav").write_bytes(b"x")
    found = find_source_files(str(tmp_path), (".parquet",), SourceOptions(), Problems())
    assert [file.name for file in found.files] == ["a.parquet"]
    assert sorted(counts.reason for counts in found.unlisted) == [
        "audio, but next to files that hold the recordings",
        "in skipped folders, whose names begin with '.' or '_'",
    ]
    assert layouts.detect_parquet(str(tmp_path), SourceOptions(), Problems()) == "parquet"
    assert GROUP == 3


def test_a_single_folder_of_the_copy_is_its_split(tmp_path: Path) -> None:
    file = write_copy(tmp_path, "unbal_train", ["z"], [["/m/c"]], [["Rain"]])
    for source in (file, file.parent, f"{file.parent}/*.parquet", f"file://{file}", f"file://{file.parent}"):
        assert [clip.split for clip in load_manifest(source, "audioset").clips] == ["unbalanced_train"]
