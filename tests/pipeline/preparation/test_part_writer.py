"""A part of the shards has the same bytes wherever its recordings are, and a changed source is noticed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from listed_audio import FRONT_END, RATE_HZ, rows, write_clips
from packed_recordings import GROUP, as_uris, like, write_parquet, write_tar

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.source_state import read_states, relative_path
from ast_core.errors import UserError
from ast_core.serialization import to_dict
from ast_core.storage.json_files import read_hashed_json, sha256_of_json
from ast_core.storage.places import root_of
from pipeline.preparation import part_writer
from pipeline.preparation.part_cuts import cut_clips, note_large_groups
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart, is_complete

COUNT = 16
METADATA = ShardMetadata(FRONT_END, ("even", "odd"), single_label=True)
Kinds = dict[str, tuple[tuple[Clip, ...], str]]
"""The clips of each kind of source, and their source."""


@pytest.fixture
def kinds(tmp_path: Path) -> Kinds:
    """Return the same clips as loose files, in Parquet, in a tar archive, and each by its URI; one is not audio."""
    folder = tmp_path / "data"
    names = write_clips(folder, COUNT)
    (folder / names[5]).write_bytes(b"this is no audio")
    contents = [(folder / name).read_bytes() for name in names]
    loose = [Clip(name, str(folder / name), (number % 2,), "train") for number, name in enumerate(names)]
    clips = {
        "loose": loose,
        "Parquet": like(loose, write_parquet(folder / "a.parquet", contents)),
        "tar": like(loose, write_tar(folder / "a.tar", contents)),
    }
    found: Kinds = {}
    for kind, own in clips.items():
        found[kind] = tuple(own), str(folder)
        found[f"{kind} by URI"] = tuple(as_uris(own)), f"file://{folder}"
    return found


def make_part(folder: Path, clips: tuple[Clip, ...], source: str) -> ShardPart:
    column = "audio" if clips[0].path.endswith(".parquet") else ""
    return ShardPart(str(folder / "train"), "part-00000", "train", clips, root_of(source), METADATA, 120.0, column)


def test_every_kind_of_source_makes_the_same_part(tmp_path: Path, kinds: Kinds) -> None:
    files, reasons = set(), set()
    for kind, (clips, source) in kinds.items():
        part = make_part(tmp_path / kind, clips, source)
        assert ShardPart.unpacked(part.packed()) == part
        (reject,) = write_shard_part(part)
        assert reject["clip_id"] == "good-0005.wav"
        reasons.add((reject["stage"], reject["reason"]))
        files.add(part.marker.with_suffix(".parquet").read_bytes())
        assert set(rows(tmp_path / kind)) == {clip.clip_id for clip in clips} - {"good-0005.wav"}
        assert is_complete(part)
    assert len(files) == 1
    assert len(reasons) == 1


def test_rejects_name_the_place_in_the_container(tmp_path: Path, kinds: Kinds) -> None:
    (reject,) = write_shard_part(make_part(tmp_path / "parquet", *kinds["Parquet"]))
    assert reject["path"] == f"{tmp_path}/data/a.parquet, row group 0, row 5"
    (reject,) = write_shard_part(make_part(tmp_path / "tar", *kinds["tar by URI"]))
    start, size = kinds["tar"][0][5].member or (0, 0)
    assert reject["path"] == f"file://{tmp_path}/data/a.tar, bytes {start} to {start + size}"


def test_parts_of_loose_files_keep_the_key_and_the_form_that_they_had(tmp_path: Path, kinds: Kinds) -> None:
    clips, source = kinds["loose"]
    clips = (*clips[:2], Clip("gone", "", (1,), "train"), dataclasses.replace(clips[2], start_s=0.1, end_s=0.2))
    part = make_part(tmp_path, clips, source)

    def fingerprint(clip: Clip) -> list[object]:  # the code of version 0.2.0
        if not clip.path:
            return [clip.clip_id, list(clip.labels)]
        status = Path(clip.path).stat()
        seen = [status.st_size, status.st_mtime_ns, os.access(clip.path, os.R_OK)]
        times = [clip.start_s, clip.end_s] if clip.is_segment else []
        return [clip.clip_id, list(clip.labels), os.path.relpath(clip.path, source), *seen, *times]

    old = {"format": 1, "clips": [fingerprint(clip) for clip in clips], "metadata": to_dict(METADATA)}
    assert part.key() == sha256_of_json(old)
    assert json.loads(part.packed())["clips"][0] == ["good-0000.wav", clips[0].path, [0], "train", 0.0, None]
    assert dataclasses.replace(part, device="cuda").key() != part.key()


@pytest.mark.parametrize("kind", ["Parquet", "tar", "Parquet by URI", "loose by URI"])
def test_a_changed_source_is_made_again_and_a_moved_one_is_not(tmp_path: Path, kinds: Kinds, kind: str) -> None:
    clips, source = kinds[kind]
    part = make_part(tmp_path / "shards", clips, source)
    write_shard_part(part)
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    there = [dataclasses.replace(clip, path=clip.path.replace("/data/", "/moved/")) for clip in clips]
    part = make_part(tmp_path / "shards", tuple(there), source.replace("/data", "/moved"))
    assert is_complete(part)
    path = Path(there[0].path.removeprefix("file://"))
    os.utime(path, (1, 1))
    assert not is_complete(part)


@pytest.mark.parametrize("kind", ["Parquet", "tar by URI"])
def test_a_source_that_changes_meanwhile_gives_the_marker_no_key(tmp_path: Path, kinds: Kinds, kind: str) -> None:
    clips, source = kinds[kind]
    part = make_part(tmp_path / "shards", clips, source)
    before = part_writer.read_waveforms

    def change(*given: object) -> object:
        yield from before(*given)
        os.utime(clips[0].path.removeprefix("file://"), (1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_writer, "read_waveforms", change)
        write_shard_part(part)
    assert read_hashed_json(part.marker, "Marker")["key"] == ""
    assert not is_complete(part)
    write_shard_part(part)
    assert is_complete(part)


def test_segments_of_a_packed_recording_are_those_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        noise_N = np.random.default_rng(number).normal(0, 0.1, 3 * RATE_HZ)
        soundfile.write(folder / f"long-{number}.flac", noise_N, RATE_HZ)
    contents = [(folder / f"long-{number}.flac").read_bytes() for number in range(2)]
    times = [(0.0, 0.4), (0.5, 0.8), (2.9, None), (1.0, 1.3), (2.8, 4.0)]
    loose = tuple(
        Clip(f"{number}-{start_s}", str(folder / f"long-{number}.flac"), (0,), "train", start_s, end_s)
        for number in range(2)
        for start_s, end_s in times
    )
    packed = write_parquet(folder / "a.parquet", contents)
    files = set()
    for name, clips in (("loose", loose), ("packed", like(loose, [one for one in packed for _ in times]))):
        part = make_part(tmp_path / name, clips, str(folder))
        assert [reject["stage"] for reject in write_shard_part(part)] == ["segment"] * 2
        files.add(part.marker.with_suffix(".parquet").read_bytes())
    assert len(files) == 1


def test_a_damaged_page_stops_with_the_place_of_the_first_recording(tmp_path: Path, kinds: Kinds) -> None:
    clips, source = kinds["Parquet"]
    contents = [(tmp_path / "data" / clip.clip_id).read_bytes() for clip in clips]
    write_parquet(tmp_path / "data" / "a.parquet", contents, write_page_checksum=True, use_dictionary=False)
    data = bytearray((tmp_path / "data" / "a.parquet").read_bytes())
    data[data.index(contents[GROUP + 2][:1000]) + 500] ^= 1
    (tmp_path / "data" / "a.parquet").write_bytes(data)
    part = make_part(tmp_path, clips, source)
    with pytest.raises(UserError, match=r"a\.parquet, row group 1, row 0 could not be read: row group 1 .*run again"):
        write_shard_part(part)
    assert not part.marker.is_file()


def test_a_store_that_does_not_answer_is_a_sentence(tmp_path: Path, kinds: Kinds, monkeypatch) -> None:
    part = make_part(tmp_path, *kinds["loose by URI"])

    def fail(uri: str) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr("ast_core.dataset.contents.source_state.locate_file", fail)
    with pytest.raises(UserError, match=r"could not be looked up: AWS Error NETWORK_CONNECTION\. Check that the store"):
        write_shard_part(part)


def test_each_container_is_looked_at_once(kinds: Kinds, monkeypatch) -> None:
    looks: list[str] = []
    before = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **given: looks.append(str(path)) or before(path, **given))
    clips, _ = kinds["Parquet"]
    assert len(read_states(clip.path for clip in clips)) == 1
    assert len(looks) == 1


def test_paths_are_relative_to_every_kind_of_source(tmp_path: Path) -> None:
    assert relative_path("s3://b/x/a.wav?region=r", root_of("s3://b/x/?region=r")) == "a.wav"
    assert relative_path("s3://b/x/y/a.parquet", root_of("s3://b/x/*/a*.parquet")) == "y/a.parquet"
    assert relative_path("s3://other/a.wav", root_of("s3://b/x")) == "s3://other/a.wav"
    assert relative_path("s3://b/x.tar", root_of("s3://b/x.tar")) == "."
    assert relative_path("s3://b/a.wav", root_of(tmp_path / "list.csv")) == "s3://b/a.wav"
    assert relative_path(f"{tmp_path}/a.parquet", root_of(f"{tmp_path}/*.parquet")) == "a.parquet"
    (tmp_path / "odd [1]").mkdir()
    assert root_of(tmp_path / "odd [1]") == os.path.realpath(tmp_path / "odd [1]")


def member_clips(groups: list[int], path: str = "a.parquet") -> list[Clip]:
    return [Clip(f"{g}-{r}", path, (), "train", member=(g, r)) for g, count in enumerate(groups) for r in range(count)]


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [([4, 4, 4], [8, 4]), ([10, 1, 9, 30, 2, 2], [10, 10, 30, 4]), ([3, 9, 1], [3, 10]), ([11], [11])],
)
def test_row_groups_are_not_cut(groups: list[int], sizes: list[int]) -> None:
    parts = cut_clips(member_clips(groups), 10)
    assert [len(part) for part in parts] == sizes
    assert [clip for part in parts for clip in part] == member_clips(groups)


def test_everything_else_is_cut_as_before() -> None:
    for count in (0, 1, 9, 10, 11, 35):
        for member in (None, (512, 7)):
            clips = [Clip(str(number), "a.tar", (), "train", member=member) for number in range(count)]
            expected = [tuple(clips[start : start + 10]) for start in range(0, count, 10)]
            assert cut_clips(clips, 10) == expected


def test_large_row_groups_are_named() -> None:
    assert not note_large_groups(member_clips([20]), 10)
    note = note_large_groups(member_clips([5, 21, 30]), 10)
    assert "2 row groups" in note
    assert "the largest 30 (a.parquet, row group 2)" in note
