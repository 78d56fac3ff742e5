"""WebDataset archives are the same data as loose files, and what cannot be read is named with archive and member."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset_archives as archives
from webdataset_archives import flac, sample, write

from ast_core.dataset.contents.clip_contents import read_contents
from ast_core.dataset.manifest import Clip, Columns, Manifest, detect_layout, load_manifest
from ast_core.errors import UserError

LIST = 'index,mid,display_name\n0,/m/c,Rain\n1,/m/a,"Speech, near"\n2,/m/x,Unused\n3,/m/b,Dog\n'


def refusal(source: Path | str, layout: Any = "auto", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(source, layout, **options)
    return str(caught.value)


def named_labels(manifest: Manifest) -> dict[str, list[str]]:
    return {clip.clip_id: [manifest.labels[label] for label in clip.labels] for clip in manifest.clips}


def counts(manifest: Manifest) -> dict[str, int]:
    return {unlisted.reason: unlisted.count for unlisted in manifest.unlisted}


def test_labels_of_every_kind_are_read(tmp_path: Path) -> None:
    contents: dict[str, bytes] = {
        "text.json": b'{"label": "Dog"}',
        "texts.json": b'{"labels": ["Rain", "Speech, near"], "label": "not this"}',
        "several.json": b'{"label": "Dog;Rain"}',
        "none.json": b'{"labels": []}',
        "name.cls": b"Dog\n",
        "index.cls": b"3",
        "lines.txt": "\ufeffDog\r\n\nRain\n".encode(),
        "whole.json": b'{"label": 3.0}',
        "first.json": b'{"other": 1}',
        "first.cls": b"Rain",
        "first.txt": b"Dog",
    }
    keys = dict.fromkeys(name.partition(".")[0] for name in contents)
    members = [member for key in keys for member in [(f"{key}.wav", flac()), *archives.named(contents, key)]]
    manifest = load_manifest(write(tmp_path / "a.tar", members))
    assert manifest.layout == "webdataset"
    assert not manifest.single_label
    assert named_labels(manifest) == {
        "a/text": ["Dog"],
        "a/texts": ["Rain", "Speech, near"],
        "a/several": ["Dog", "Rain"],
        "a/none": [],
        "a/name": ["Dog"],
        "a/index": ["3"],
        "a/lines": ["Dog", "Rain"],
        "a/whole": ["3"],
        "a/first": ["Rain"],
    }


def test_integers_are_sorted_by_number_or_named_by_the_list(tmp_path: Path) -> None:
    members = [one for n in (10, 9, 0) for one in [(f"k{n}.wav", flac()), (f"k{n}.cls", str(n % 10 + 0).encode())]]
    source = write(tmp_path / "a.tar", [*members, ("k.wav", flac()), ("k.json", b'{"label": 1}')])
    assert load_manifest(source).labels == ("0", "1", "9")
    (tmp_path / "list.csv").write_text(LIST)
    members = [("a.wav", flac()), ("a.cls", b"1"), ("b.wav", flac()), ("b.json", b'{"labels": ["/m/b", "Rain"]}')]
    manifest = load_manifest(write(tmp_path / "a.tar", members), label_names=str(tmp_path / "list.csv"))
    assert manifest.labels == ("Rain", "Speech, near", "Unused", "Dog")
    assert [clip.labels for clip in manifest.clips] == [(1,), (0, 3)]


def test_ids_splits_and_members_follow_names_and_headers(tmp_path: Path) -> None:
    """Keys may repeat in each archive, and may have folders."""
    for name in ("train-000000", "train-000001", "valid/0", "test/0"):
        write(tmp_path / f"{name}.tar", [*sample("./0001", ["a"]), *sample("sub/0002", ["b"], "left.FLAC", 5)])
    manifest = load_manifest(tmp_path)
    assert manifest.single_label
    splits = {clip.clip_id: clip.split for clip in manifest.clips}
    assert splits == {
        "test/0/0001": "test",
        "test/0/sub/0002": "test",
        "train-000000/0001": "train",
        "train-000000/sub/0002": "train",
        "train-000001/0001": "train",
        "train-000001/sub/0002": "train",
        "valid/0/0001": "validation",
        "valid/0/sub/0002": "validation",
    }
    contents = list(read_contents(manifest.clips))
    assert [content for _, content in contents] == [flac(), flac(5)] * 4
    with tarfile.open(tmp_path / "test/0.tar") as archive:
        info = archive.getmember("./0001.flac")
    assert manifest.clips[0] == Clip(
        "test/0/0001", str(tmp_path / "test/0.tar"), (0,), "test", member=(info.offset_data, info.size)
    )


def test_clips_without_a_split_are_placed_one_by_one(tmp_path: Path) -> None:
    members = [one for n in range(60) for one in sample(f"k{n}", [f"c{n % 2}"])]
    placed = {clip.clip_id: clip.split for clip in load_manifest(write(tmp_path / "a.tar", members)).clips}
    assert set(placed.values()) == {"train", "validation", "test"}
    assert placed == {clip.clip_id: clip.split for clip in load_manifest(tmp_path).clips}


def test_archives_are_the_same_data_as_class_folders(tmp_path: Path) -> None:
    loose, packed = tmp_path / "loose", tmp_path / "packed"
    number = 0
    for split, folder in (("train", "train"), ("validation", "validation"), ("test", "test")):
        members = []
        for label in ("dog", "rain"):
            for place in range(3):
                path = loose / folder / label / f"{label}{place}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(flac(number))
                members += [(path.name, path.read_bytes()), (f"{path.stem}.cls", label.encode())]
                number += 1
        write(packed / f"{split}-000000.tar", members)
    first, second = load_manifest(loose), load_manifest(packed)
    assert (first.labels, first.single_label) == (second.labels, second.single_label)
    rows = [
        {Path(clip.clip_id).stem: (clip.split, clip.labels) for clip in manifest.clips} for manifest in (first, second)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6
    bytes_of = [
        sorted(
            (clip.split, Path(content).read_bytes() if isinstance(content, str) else content)
            for clip, content in read_contents(manifest.clips)
        )
        for manifest in (first, second)
    ]
    assert bytes_of[0] == bytes_of[1]


def test_the_audioset_copy_has_the_splits_ids_and_names_of_the_lists(tmp_path: Path) -> None:
    loose, copy = tmp_path / "loose", tmp_path / "copy"
    ids = {"balanced_train": ["-a", "b_c"], "unbalanced_train": ["d", "e"], "eval": ["f"]}
    places = {"balanced_train": "bal_train/000000", "unbalanced_train": "unbal_train00", "eval": "eval/000000"}
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
        members = [one for name in own for one in sample(name, [names[mid] for mid in mids[name]])]
        write(copy / f"{places[split]}.tar", members)
    first, second = load_manifest(loose), load_manifest(copy)
    assert (first.layout, first.labels, first.single_label) == (second.layout, second.labels, second.single_label)
    rows = [
        {(clip.clip_id.removesuffix("_30"), clip.labels, clip.split) for clip in manifest.clips}
        for manifest in (first, second)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 5
    assert load_manifest(copy, "audioset") == second
    by_id = {clip.clip_id: clip.split for clip in load_manifest(copy, "webdataset").clips}
    assert by_id["bal_train/000000/-a"] == "balanced_train"
    assert by_id["eval/000000/f"] == "eval"


def test_files_globs_and_uris_list_the_same(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"data/train/{number}.tar", sample(f"k{number}", ["a"]) + sample("x", ["b"]))
    (tmp_path / "data/README.md").write_text("x")
    folder = load_manifest(tmp_path / "data")
    uri = load_manifest(f"file://{tmp_path}/data")
    for other in (uri, load_manifest(f"{tmp_path}/data/*/*.tar"), load_manifest(f"file://{tmp_path}/data/**/*.tar")):
        assert [(clip.clip_id, clip.labels, clip.split, clip.member) for clip in other.clips] == [
            (clip.clip_id, clip.labels, clip.split, clip.member) for clip in folder.clips
        ]
    assert uri.clips[0].path == f"file://{folder.clips[0].path}"
    assert counts(folder) == {"not audio": 1}
    assert counts(uri) == {"not tar archives": 1}
    single = load_manifest(f"file://{tmp_path}/data/train/1.tar")
    assert [clip.clip_id for clip in single.clips] == ["1/k1", "1/x"]


def test_members_of_a_sample_may_be_apart_and_keep_the_order_of_recordings(tmp_path: Path) -> None:
    keys = ["b", "a", "c"]
    members = [(f"{key}.flac", flac()) for key in keys] + [(f"{key}.cls", b"x") for key in reversed(keys)]
    manifest = load_manifest(write(tmp_path / "a.tar", members))
    assert [clip.clip_id for clip in manifest.clips] == ["a/b", "a/a", "a/c"]


def test_other_members_are_counted(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "b.png"
    members = [folder, link, ("._k.flac", b"x"), ("LICENSE", b"x"), ("k.jpg", b"x"), ("gone.json", b'{"label": "x"}')]
    manifest = load_manifest(write(tmp_path / "a.tar", [*members, *sample("k", ["a"])]))
    assert [clip.clip_id for clip in manifest.clips] == ["a/k"]
    assert counts(manifest) == {
        "hidden or without a suffix": 2,
        "not audio and not labels": 1,
        "not read: a link": 1,
        "labels without a recording": 1,
    }
    sentence = next(one.sentence for one in manifest.unlisted if one.count == 2)
    assert sentence == "2 archive members are hidden or without a suffix, for example a.tar/._k.flac, a.tar/LICENSE"


def link_to(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE, "k.flac"
    return info


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            [("k.flac", flac())],
            "member k.flac: the recording has no labels: the archive has no member with the key 'k'",
        ),
        ([*sample("k", ["a"]), ("k.wav", b"x")], "member k.wav: a second recording with the key 'k', after 'k.flac'"),
        ([("k.1.wav", b"x"), ("k.2.wav", b"x")], "member k.2.wav: a second recording with the key 'k'"),
        ([*sample("k", ["a"]), ("k.json", b"{}")], "member k.json: the member 'k.json' is there twice"),
        (
            [*sample("k", ["a"]), *sample("x", ["a"]), *sample("k", ["a"])],
            "member k.flac: the key 'k' was there before",
        ),
        ([link_to("a.flac")], "member a.flac: this is a link, not the bytes"),
        ([("k.flac", flac()), ("k.json", b"{")], "member k.json: this is not JSON"),
        ([("k.flac", flac()), ("k.json", b"[" * 100_000)], "member k.json: this is not JSON"),
        ([("k.flac", flac()), ("k.json", b"\xff\xfe\xff")], "member k.json: this is not JSON"),
        ([("k.flac", flac()), ("k.json", b"[1]")], "member k.json: the JSON is '[1]'; give an object"),
        ([("k.flac", flac()), ("k.json", b'{"tags": 1, "url": 2}')], "its keys are 'tags', 'url': name the key of the"),
        ([("k.flac", flac()), ("k.json", b'{"label": null}')], "member k.json: the label is null"),
        ([("k.flac", flac()), ("k.json", b'{"label": 0.5}')], "member k.json: a label is '0.5'"),
        ([("k.flac", flac()), ("k.json", b'{"label": true}')], "member k.json: a label is 'True'"),
        ([("k.flac", flac()), ("k.json", b'{"label": {"a": 1}}')], "member k.json: a label is"),
        ([("k.flac", flac()), ("k.json", b'{"labels": [["a"]]}')], "member k.json: a label is"),
        ([("k.flac", flac()), ("k.json", b'{"label": -1}')], "member k.json: the label is -1"),
        ([("k.flac", flac()), ("k.json", b'{"label": "a\\nb"}')], "the label 'a\\nb' has characters that cannot be"),
        ([("k.flac", flac()), ("k.json", b" " * (1 << 21))], "member k.json: the labels have 2097152 bytes"),
        ([("k.flac", flac()), ("k.txt", b"\xff")], "member k.txt: the labels are not UTF-8 (byte 0)"),
        ([("k.flac", flac()), ("k.txt", b" \n")], "member k.txt: the labels are empty"),
        ([("k.flac", b""), ("k.txt", b"a")], "member k.flac: the recording has no bytes"),
        ([("k\t.flac", flac()), ("k\t.txt", b"a")], "the name 'a/k\\t' has characters that cannot be printed"),
        (sample("k", []), "no recording has a label"),
    ],
)
def test_bad_members_are_named_with_their_archive(tmp_path: Path, members: Any, expected: str) -> None:
    source = write(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    text = refusal(tmp_path)
    assert expected in text
    assert str(source) in text or expected.startswith("no recording")


def test_a_named_key_of_json_holds_the_labels(tmp_path: Path) -> None:
    members = [("k.flac", flac()), ("k.json", json.dumps({"tags": ["a"], "label": "b", "site": "x"}).encode())]
    source = write(tmp_path / "a.tar", members)
    assert load_manifest(source, columns=Columns("tags")).labels == ("a",)
    assert "the JSON has no key other; its keys are 'tags', 'label'" in refusal(source, columns=Columns("other"))
    write(source, [("k.flac", flac()), ("k.txt", b"a")])
    assert "--data.label-column tags names a key of JSON, but the recording has no .json" in refusal(
        source, columns=Columns("tags")
    )
    assert "--data.audio-column names a column of Parquet files" in refusal(source, columns=Columns(audio="x"))


def test_groups_are_a_key_of_json_or_a_pattern_on_the_ids(tmp_path: Path) -> None:
    members = []
    for number in range(12):
        cells = json.dumps({"label": "a", "site": f"S{number % 3}"}).encode()
        members += [(f"p{number % 3}_{number}.flac", flac()), (f"p{number % 3}_{number}.json", cells)]
    source = write(tmp_path / "a.tar", members)
    for group in ("site", "(p[0-9])_"):
        clips = load_manifest(source, group=group).clips
        assert len({clip.group for clip in clips}) == 3
        assert len({(clip.group, clip.split) for clip in clips}) == 3


def test_compressed_archives_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    assert "a.tar.gz: compressed archives are not read" in refusal(tmp_path)
    assert "unpack it to a .tar" in refusal(tmp_path / "a.tar.gz")
    assert "unpack it to a .tar" in refusal(f"file://{tmp_path}/a.tar.gz")
    write(tmp_path / "b.tar", sample("k", ["a"]))
    assert "1 problem(s)" in refusal(tmp_path)
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    assert "a.tar: the file is compressed (gzip)" in refusal(tmp_path)


def test_a_damaged_archive_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    content = archives.pack(sample("k", ["a"]))
    (tmp_path / "a.tar").write_bytes(content[:800])
    write(tmp_path / "b.tar", [("k.flac", flac())])
    text = refusal(tmp_path)
    assert "2 problem(s)" in text  # that the cut archive lacks labels is not a third one
    assert "a.tar: the header at byte 1024, after the member 'k.flac' is damaged: the archive is cut off" in text
    assert "b.tar, member k.flac: the recording has no labels" in text


def test_an_archive_without_an_end_is_noted(tmp_path: Path) -> None:
    content = archives.pack(sample("k", ["a"]))
    (tmp_path / "a.tar").write_bytes(content[:2048])
    manifest = load_manifest(tmp_path)
    assert len(manifest.clips) == 1
    assert "1 archives have no blocks that end them, for example a.tar" in manifest.notes[0]


def test_archives_in_no_split_are_problems_where_others_have_one(tmp_path: Path) -> None:
    write(tmp_path / "train/a.tar", sample("k", ["a"]))
    write(tmp_path / "b.tar", sample("k", ["a"]))
    assert "b.tar: no folder or file name says the split, as it does for other archives" in refusal(tmp_path)


def test_layouts_are_recognised(tmp_path: Path) -> None:
    write(tmp_path / "one/a.tar", sample("k", ["a"]))
    write(tmp_path / "copy/bal_train/0.tar", sample("k", ["a"]))
    assert detect_layout(tmp_path / "one") == detect_layout(tmp_path / "one/a.tar") == "webdataset"
    assert detect_layout(f"file://{tmp_path}/one/a.tar") == "webdataset"
    assert detect_layout(tmp_path / "copy") == detect_layout(f"{tmp_path}/copy/*/*.tar") == "audioset"
    (tmp_path / "none").mkdir()
    assert "has no tar archives" in refusal(tmp_path / "none", "webdataset")
