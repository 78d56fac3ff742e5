"""Recordings in an S3 store become the same shards as local ones, and a change of an object is noticed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import servers
from listed_audio import FRONT_END, write_clips
from packed_recordings import like, write_parquet, write_tar

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents import clip_contents
from ast_core.dataset.contents.clip_contents import read_contents
from ast_core.errors import ClipError, UserError
from ast_core.storage.places import root_of
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart, is_complete

pytestmark = [pytest.mark.server, pytest.mark.timeout(120)]
COUNT = 20
Kinds = dict[str, tuple[Clip, ...]]


@pytest.fixture
def kinds(tmp_path: Path, s3_store: Mapping[str, str]) -> Kinds:
    """Upload the same clips as objects, as Parquet and as a tar archive; return the clips of each, and local ones."""
    folder = tmp_path / "data"
    names = write_clips(folder, COUNT)
    (folder / names[5]).write_bytes(b"this is no audio")
    contents = [(folder / name).read_bytes() for name in names]
    local = tuple(Clip(name, str(folder / name), (n % 2,), "train") for n, name in enumerate(names))
    packed = {
        "local": local,
        "objects": local,
        "Parquet": like(local, write_parquet(folder / "a.parquet", contents)),
        "tar": like(local, write_tar(folder / "a.tar", contents)),
    }
    place = f"s3://{servers.BUCKET}/{tmp_path.name}"
    with servers.s3(s3_store) as client:
        for path in folder.iterdir():
            client.upload_file(str(path), servers.BUCKET, f"{tmp_path.name}/{path.name}")
    return {
        kind: clips
        if kind == "local"
        else tuple(dataclasses.replace(clip, path=f"{place}/{Path(clip.path).name}") for clip in clips)
        for kind, clips in packed.items()
    }


def make_part(folder: Path, clips: tuple[Clip, ...]) -> ShardPart:
    metadata = ShardMetadata(FRONT_END, ("even", "odd"), single_label=True)
    source = root_of(clips[0].path.rpartition("/")[0])
    column = "audio" if clips[0].path.endswith(".parquet") else ""
    return ShardPart(str(folder / "train"), "part-00000", "train", clips, source, metadata, 120.0, column)


def test_every_kind_of_remote_source_makes_the_local_part(
    tmp_path: Path, kinds: Kinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_contents, "WINDOW_BYTES", 30_000)  # an archive of several windows
    files = set()
    for kind, clips in kinds.items():
        part = make_part(tmp_path / kind, clips)
        (reject,) = write_shard_part(part)
        assert reject["clip_id"] == "good-0005.wav"
        assert reject["path"].startswith(clips[5].path)
        files.add(part.marker.with_suffix(".parquet").read_bytes())
        assert is_complete(part)
    assert len(files) == 1


def test_a_changed_object_is_noticed_and_a_deleted_one_is_a_reject(
    tmp_path: Path, kinds: Kinds, s3_store: Mapping[str, str]
) -> None:
    parts = {kind: make_part(tmp_path / kind, clips) for kind, clips in kinds.items() if kind != "local"}
    for part in parts.values():
        write_shard_part(part)
    time.sleep(1.1)  # times of uploads are whole seconds
    with servers.s3(s3_store) as client:
        for name in ("a.parquet", "a.tar", "good-0003.wav"):
            client.upload_file(str(tmp_path / "data" / name), servers.BUCKET, f"{tmp_path.name}/{name}")
        assert not any(is_complete(part) for part in parts.values())
        client.delete_object(Bucket=servers.BUCKET, Key=f"{tmp_path.name}/good-0003.wav")
    rejects = write_shard_part(parts["objects"])
    assert [(reject["clip_id"], reject["stage"]) for reject in rejects] == [
        ("good-0003.wav", "read"),
        ("good-0005.wav", "decode"),
    ]


@pytest.mark.long  # pyarrow tries for eight seconds; `test_clip_contents` has the short form
def test_a_server_that_is_gone_is_no_fault_of_a_clip(tmp_path: Path, kinds: Kinds) -> None:
    port = servers.free_port("127.0.0.1")
    gone = f"?endpoint_override=http%3A%2F%2F127.0.0.1%3A{port}&region=us-east-1"
    for kind in ("objects", "Parquet", "tar"):
        clips = tuple(dataclasses.replace(clip, path=clip.path + gone) for clip in kinds[kind][:3])
        assert all(isinstance(found, OSError) for _, found in read_contents(clips))
        with pytest.raises(UserError, match="could not be looked up"):
            write_shard_part(make_part(tmp_path / kind, clips))


def test_a_missing_bucket_is_a_fault_that_is_named(s3_store: Mapping[str, str]) -> None:
    ((_, found),) = read_contents([Clip("a", "s3://no-such-bucket/a.wav", (), "train")])
    assert isinstance(found, ClipError | OSError)
    assert str(found)
