"""Recordings are the same bytes from loose files, Parquet files, tar archives and object stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_recordings import GROUP, as_uris, write_parquet, write_tar

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents import clip_contents, parquet_cells
from ast_core.dataset.contents.clip_contents import read_contents
from ast_core.errors import ClipError, UserError
from ast_core.storage.file_systems import join_uri, locate_file

COUNT = 30


@pytest.fixture
def contents() -> list[bytes]:
    """Return recordings of different sizes; no decoder sees them."""
    rng = np.random.default_rng(3)
    return [rng.bytes(int(size)) for size in rng.integers(1, 60_000, COUNT)]


def read(clips: list[Clip], column: str = "") -> list[object]:
    """Return what is read for each clip, and check that every clip comes once and in order."""
    found = list(read_contents(clips, column))
    assert [clip for clip, _ in found] == clips
    return [content for _, content in found]


@pytest.fixture(params=["local", "uri"])
def place(request: pytest.FixtureRequest) -> Iterator[object]:
    """Return a function that makes URIs of paths, or leaves them as they are."""
    return as_uris if request.param == "uri" else list


@pytest.mark.parametrize("in_struct", [True, False])
def test_parquet_cells_are_the_recordings(tmp_path: Path, contents: list[bytes], place, in_struct: bool) -> None:
    clips = place(write_parquet(tmp_path / "a.parquet", contents, in_struct))
    assert read(clips) == contents
    assert read(clips, "audio") == contents
    assert read(clips[::-1]) == contents[::-1]
    assert read(clips[3::9]) == contents[3::9]


def test_tar_members_are_the_recordings(
    tmp_path: Path, contents: list[bytes], place, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = place(write_tar(tmp_path / "a.tar", contents))
    assert read(clips) == contents
    assert read(clips[::-1]) == contents[::-1]
    monkeypatch.setattr(clip_contents, "WINDOW_BYTES", 50_000)  # some recordings are larger
    assert read(clips) == contents


def test_loose_objects_are_read_in_order(tmp_path: Path, contents: list[bytes], monkeypatch) -> None:
    monkeypatch.setattr("ast_core.dataset.contents.read_ahead.HELD_BYTES", 100_000)
    clips = []
    for number, content in enumerate(contents):
        name = f"a folder #{number}?/100%25.wav"
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(content)
        clips.append(Clip(str(number), join_uri(f"file://{tmp_path}", name), (), "train"))
    twice = [clip for clip in clips for _ in range(2)]
    assert read(twice) == [content for content in contents for _ in range(2)]


def test_local_files_are_left_to_the_decoder() -> None:
    found = read([Clip("a", "/no/such/file.wav", (), "train"), Clip("b", "", (), "train")])
    assert found[0] == "/no/such/file.wav"
    assert isinstance(found[1], ClipError)
    assert found[1].stage == "missing"


def test_segments_of_one_recording_share_its_bytes(tmp_path: Path, contents: list[bytes], place) -> None:
    for clips in (write_parquet(tmp_path / "a.parquet", contents), write_tar(tmp_path / "a.tar", contents)):
        found = read(place([clips[4], clips[4], clips[4], clips[5]]))
        assert found[0] == contents[4]
        assert found[0] is found[1] is found[2]
        assert found[3] == contents[5]


def test_mixed_kinds_keep_their_order(tmp_path: Path, contents: list[bytes]) -> None:
    path = tmp_path / "loose.wav"
    path.write_bytes(contents[0])
    loose = Clip("loose", str(path), (), "train")
    parquet, tar = write_parquet(tmp_path / "a.parquet", contents), write_tar(tmp_path / "a.tar", contents)
    clips = [loose, parquet[1], tar[2], *as_uris([loose]), parquet[3]]
    assert read(clips) == [str(path), contents[1], contents[2], contents[0], contents[3]]


def test_deleted_files_are_faults_of_their_clips(tmp_path: Path, contents: list[bytes], place) -> None:
    kinds = [write_parquet(tmp_path / "a.parquet", contents), write_tar(tmp_path / "a.tar", contents)]
    loose = as_uris([Clip("loose", str(tmp_path / "loose.wav"), (), "train")] * 3)
    for clips in [*(place(clips) for clips in kinds), loose]:
        Path(clips[0].path.removeprefix("file://")).unlink(missing_ok=True)
        found = read(clips)
        assert {str(fault) for fault in found} == {"read: No such file or directory"}


def test_an_empty_cell_is_a_fault_of_its_clip(tmp_path: Path, contents: list[bytes]) -> None:
    for in_struct in (True, False):
        found = read(write_parquet(tmp_path / "a.parquet", [*contents[:3], None, contents[4]], in_struct))
        assert isinstance(found.pop(3), ClipError)
        assert found == [*contents[:3], contents[4]]


def test_a_damaged_page_stops_only_its_row_group(tmp_path: Path, contents: list[bytes], place) -> None:
    clips = write_parquet(tmp_path / "a.parquet", contents, write_page_checksum=True, use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[data.index(contents[GROUP + 2][:100]) + 50] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    found = read(place(clips))
    assert found[:GROUP] == contents[:GROUP]
    assert found[2 * GROUP :] == contents[2 * GROUP :]
    for fault in found[GROUP : 2 * GROUP]:
        assert isinstance(fault, OSError)
        assert "row group 1" in str(fault)


def test_a_container_that_changed_is_not_read_in_silence(tmp_path: Path, contents: list[bytes], place) -> None:
    clips = place(write_parquet(tmp_path / "a.parquet", contents))
    write_parquet(tmp_path / "a.parquet", contents[:10])
    assert [isinstance(found, OSError) for found in read(clips)] == [False] * 10 + [True] * (COUNT - 10)
    archived = place(write_tar(tmp_path / "a.tar", contents))
    end = sum(archived[20].member)
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(end - 1)
    found = read(archived)
    assert found[:20] == contents[:20]
    assert all(isinstance(fault, OSError) for fault in found[20:])
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    assert all(isinstance(fault, OSError) for fault in read(clips))


def test_a_file_without_a_column_of_bytes_is_named(tmp_path: Path, contents: list[bytes]) -> None:
    clips = write_parquet(tmp_path / "a.parquet", contents)
    (fault,) = {str(fault) for fault in read(clips, "sound")}
    assert "no column sound" in fault
    assert "id, audio" in fault


def test_an_error_of_the_store_is_no_fault_of_a_clip(contents: list[bytes], monkeypatch) -> None:
    def fail(uri: str) -> None:
        raise OSError("When reading: AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(clip_contents, "locate_file", fail)
    for clip in (Clip("a", "s3://b/a.wav", (), "train"), Clip("a", "s3://b/a.tar", (), "train", member=(0, 1))):
        (found,) = read([clip])
        assert isinstance(found, OSError)
        assert "NETWORK" in str(found)


def test_an_unknown_kind_of_uri_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"nothing://.*cannot be used"):
        read([Clip("a", "nothing://b/a.wav", (), "train")])


def test_only_pages_of_a_row_group_are_in_memory(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(400_000)
    cells = [content] * 200
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"audio": cells}), path, use_dictionary=False, compression="none", data_page_size=1 << 20,
        write_batch_size=2,
    )  # fmt: skip
    clips = [Clip(str(row), str(path), (), "train", member=(0, row)) for row in range(len(cells))]
    pa.default_memory_pool().release_unused()
    before, peak = pa.total_allocated_bytes(), 0
    for _, found in read_contents(clips):
        assert found == content
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 4 * (parquet_cells.BATCH_BYTES + parquet_cells.BUFFER_BYTES)


def test_uris_of_fsspec_are_not_decoded() -> None:
    assert join_uri("memory://bucket/a", "b c%20.wav") == "memory://bucket/a/b c%20.wav"
    assert locate_file("memory://bucket/a/b c%20.wav")[1].endswith("bucket/a/b c%20.wav")
