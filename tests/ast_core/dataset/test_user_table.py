"""Labels with commas, segments, clips without a label, and AST's own JSON lists in the user's manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ast_core.dataset.manifest import load_manifest
from ast_core.errors import UserError

MIDS = 'index,mid,display_name\n0,/m/z,"Speech, near"\n1,/m/y,Dog\n2,/m/x,Rain\n'


def write_csv(root: Path, *rows: str, columns: str = "path,labels") -> Path:
    (root / "list.csv").write_text("\n".join([columns, *rows]) + "\n")
    return root / "list.csv"


def labels_of(source: Path) -> list[tuple[str, ...]]:
    manifest = load_manifest(source)
    return [tuple(manifest.labels[label] for label in clip.labels) for clip in manifest.clips]


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("Bark,Dog", ("Bark", "Dog")),
        ("Bark;Dog", ("Bark", "Dog")),
        ("Bark|Dog", ("Bark", "Dog")),
        ("Accordion,Keyboard_(musical),Music", ("Accordion", "Keyboard_(musical)", "Music")),
        ("0,3,17", ("0", "17", "3")),
        ("/m/05tny_,/m/0ytgt", ("/m/05tny_", "/m/0ytgt")),
        ("Male speech, man speaking;Dog", ("Dog", "Male speech, man speaking")),
        ("Male speech, man speaking;", ("Male speech, man speaking",)),
        ("Dog,", ("Dog",)),
        (" ; Dog ; ", ("Dog",)),
        ("1;000 Hz", ("000 Hz", "1")),
    ],
)
def test_separators_between_labels_are_recognised(tmp_path: Path, cell: str, names: tuple[str, ...]) -> None:
    assert labels_of(write_csv(tmp_path, f'a.wav,"{cell}"')) == [names]


@pytest.mark.parametrize(
    "cell",
    [
        "dog, cat", "Male speech, man speaking", "dog ,cat", "1,000 Hz", "['dog']", "['dog', 'cat']", "[0 1]",
        "dog\uff0ccat", "dog\u3001cat", "Dog,Male speech, man speaking",
    ],
)  # fmt: skip
def test_a_text_that_may_be_one_label_or_several_is_refused(tmp_path: Path, cell: str) -> None:
    text = refusal(write_csv(tmp_path, f'a.wav,"{cell}"', "b.wav,dog"))
    assert text.startswith("1 problem(s)")
    assert "list.csv, row 2: labels is " in text
    assert "write" in text
    assert ";" in text


def test_the_refusal_says_how_to_write_each_meaning(tmp_path: Path) -> None:
    text = refusal(write_csv(tmp_path, 'a.wav,"dog, cat"'))
    assert "write 'dog;cat' for several, 'dog, cat;' for one" in text


def test_names_of_the_label_list_next_to_it_may_have_commas(tmp_path: Path) -> None:
    (tmp_path / "class_labels_indices.csv").write_text(MIDS)
    assert labels_of(write_csv(tmp_path, 'a.wav,"Speech, near"', "b.wav,Dog")) == [("Speech, near",), ("Dog",)]


def test_items_of_a_list_are_names_as_they_are(tmp_path: Path) -> None:
    rows = [{"path": "a.wav", "labels": ["Speech, near", "1,000 Hz"]}]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for name in ("m.json", "m.parquet"):
        assert labels_of(tmp_path / name) == [("1,000 Hz", "Speech, near")]


@pytest.mark.parametrize("labels", ["", ";", None, []])
def test_clips_without_a_label_make_the_set_multi_label(tmp_path: Path, labels: object) -> None:
    (tmp_path / "m.json").write_text(
        json.dumps([{"path": "a.wav", "labels": labels}, {"path": "b.wav", "labels": "dog"}])
    )
    manifest = load_manifest(tmp_path / "m.json")
    assert [clip.labels for clip in manifest.clips] == [(), (0,)]
    assert not manifest.single_label


def test_a_list_without_any_label_is_refused(tmp_path: Path) -> None:
    assert "no row has a label" in refusal(write_csv(tmp_path, "a.wav,", "b.wav,"))


def test_segments_have_times_unique_ids_and_one_split(tmp_path: Path) -> None:
    columns = "path,labels,start_s,end_s"
    (tmp_path / "long.wav").write_bytes(b"RIFF")
    rows = [f"long.wav,dog,{start},{start + 2.5}" for start in range(40)]
    manifest = load_manifest(write_csv(tmp_path, *rows, "long.wav,cat,,", "long.wav,cat,3,", columns=columns))
    assert [(c.clip_id, c.start_s, c.end_s) for c in (*manifest.clips[:2], *manifest.clips[-2:])] == [
        ("long.wav#0-2.5", 0.0, 2.5),
        ("long.wav#1-3.5", 1.0, 3.5),
        ("long.wav", 0.0, None),
        ("long.wav#3-", 3.0, None),
    ]
    assert len({clip.split for clip in manifest.clips}) == 1


@pytest.mark.parametrize(
    "times", ["3,3", "3,2", "-1,2", "nan,2", "0,inf", "0,1e9", "a,2", "0,b", "0,0", ",0", "1:30,2:00"]
)
def test_impossible_times_are_refused_with_their_values(tmp_path: Path, times: str) -> None:
    text = refusal(write_csv(tmp_path, f"a.wav,dog,{times}", "b.wav,dog,1,2", columns="path,labels,start_s,end_s"))
    assert text.startswith("1 problem(s)")
    assert "row 2: " in text
    assert "_s is " in text


def test_a_segment_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    columns = "path,labels,start_s,end_s"
    assert "is listed twice" in refusal(write_csv(tmp_path, "a.wav,dog,1,2", "a.wav,cat,1.0,2.0", columns=columns))


def test_segments_are_read_from_every_format(tmp_path: Path) -> None:
    rows = [{"path": "a.wav", "labels": "dog", "start_s": 1, "end_s": 2.5}]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    (tmp_path / "m.jsonl").write_text(json.dumps(rows[0]))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for name in ("m.json", "m.jsonl", "m.parquet"):
        (clip,) = load_manifest(tmp_path / name).clips
        assert (clip.clip_id, clip.start_s, clip.end_s) == ("a.wav#1-2.5", 1.0, 2.5)


def write_ast_list(root: Path, *rows: dict[str, object]) -> Path:
    root.mkdir(exist_ok=True)
    (root / "train.json").write_text(json.dumps({"data": list(rows)}))
    return root / "train.json"


def test_the_json_lists_of_ast_are_read_with_names_in_the_order_of_the_label_list(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.flac").write_bytes(b"x")
    row = {"wav": f"{tmp_path}/store/a.flac", "labels": "/m/x,/m/z"}
    source = write_ast_list(tmp_path / "lists", row, {"wav": "b.flac", "labels": "/m/y", "split": "eval"})
    (tmp_path / "lists" / "class_labels_indices.csv").write_text(MIDS)
    assert "--data.root" in refusal(source)
    manifest = load_manifest(source, roots=[tmp_path / "store"])
    assert manifest.labels == ("Speech, near", "Dog", "Rain")
    assert [clip.labels for clip in manifest.clips] == [(0, 2), (1,)]
    assert manifest.clips[0].path == str(tmp_path / "store" / "a.flac")
    assert manifest.clips[1].split == "eval"


def test_the_json_lists_of_ast_are_read_without_a_label_list(tmp_path: Path) -> None:
    assert labels_of(write_ast_list(tmp_path, {"wav": "a.wav", "labels": "/m/x,/m/z"})) == [("/m/x", "/m/z")]


def test_bad_rows_of_the_json_lists_of_ast_are_named(tmp_path: Path) -> None:
    (tmp_path / "class_labels_indices.csv").write_text(MIDS)
    rows: list[dict[str, object]] = [
        {"wav": "a.wav", "labels": "/m/unknown"}, {"wav": "b.wav"}, {"wav": 3, "labels": "/m/x"}, {"labels": "/m/x"},
        {"wav": "../up.wav", "labels": "/m/x"},
    ]  # fmt: skip
    text = refusal(write_ast_list(tmp_path, *rows))
    assert all(f"train.json, row {number}: " in text for number in range(1, 6))
    (tmp_path / "train.json").write_text('{"data": {"wav": 1}}')
    assert "AST's own" in refusal(tmp_path / "train.json")


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_columns_that_are_not_read_are_named(tmp_path: Path, kind: str) -> None:
    table = pa.table({"path": ["a.wav"], "labels": ["dog"], "start": ["1.0"], "speaker": ["x"]})
    source = tmp_path / f"list.{kind}"
    if kind == "csv":
        source.write_text("path,labels,start,speaker\na.wav,dog,1.0,x\n")
    elif kind == "json":
        source.write_text(json.dumps(table.to_pylist()))
    else:
        pq.write_table(table, source)
    (tmp_path / "a.wav").touch()
    assert load_manifest(source).notes == ("columns that are not read: 'start', 'speaker'",)
    assert "columns that are not read: 'start'" in load_manifest(source, group="speaker").notes
