"""The clip index that `prepare` writes: made of the markers, equal to the parts, of the same shards as `index.json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from prepared import read_split

from ast_core.config import FrontEndConfig
from ast_core.dataset.manifest import Manifest, load_manifest
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from ast_core.shards.clip_index import CLIP_INDEX, read_clip_index
from ast_core.shards.index import ShardIndex
from ast_core.shards.reader import ShardReader
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from ast_core.storage.object_store import ObjectStore
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart
from pipeline.run_folder.downloads import download_shards
from pipeline.run_folder.shard_folder import ShardFolder

FRONT_END = FrontEndConfig(target_frames=32, num_mel_bins=16)
PART = 9
"""Clips in a part: more than a row group."""


@pytest.fixture
def manifest(tmp_path: Path, save_tone: Callable[..., Path]) -> Manifest:
    """Return 20 clips of two splits; the third is not audio, the fifth has no file, some have no label."""
    lines = ["path,labels,split"]
    for number in range(20):
        path = save_tone(tmp_path / "data" / f"{number}.wav", seconds=0.1 + number / 100, seed=number)
        lines.append(f"{path.name},{('a;b', 'b', '')[number % 3]},{'train' if number < 14 else 'test'}")
    (tmp_path / "data" / "2.wav").write_bytes(b"not audio")
    (tmp_path / "data" / "4.wav").unlink()
    (tmp_path / "data" / "list.csv").write_text("\n".join(lines))
    return load_manifest(tmp_path / "data" / "list.csv")


def prepare(manifest: Manifest, shards: Path, part: int = PART) -> ShardFolder:
    """Write the parts that are missing."""
    metadata, parts = ShardMetadata(FRONT_END, manifest.labels, manifest.single_label), []
    for split in ("train", "test"):
        clips = [clip for clip in manifest.clips if clip.split == split]
        for first in range(0, len(clips), part):
            chunk, name = tuple(clips[first : first + part]), f"part-{first // part:05d}"
            parts.append(ShardPart(str(shards / split), name, split, chunk, str(shards), metadata))
    folder = ShardFolder(shards, parts)
    for pending in folder.pending():
        folder.remove_index()
        write_shard_part(pending)
    return folder


def write_index(manifest: Manifest, shards: Path, part: int = PART) -> ShardIndex:
    """Write the parts that are missing, and the index."""
    folder = prepare(manifest, shards, part)
    return folder.write_index(manifest, FRONT_END, folder.count()[0], TENTHS_OF_CLASSES)


def require_clip_index(shards: Path, splits: Sequence[str] = ("train", "test")) -> None:
    """Require that the clip index of each split is the one that `index.json` names, and has what the parts have."""
    index = ShardIndex.load(shards)
    for split in splits:
        own = index.splits[split]
        found = read_clip_index(shards / split / CLIP_INDEX, own.clip_index, own.rows, len(index.labels))
        assert found.to_arrow().equals(read_split(shards, split).to_arrow())


def test_it_is_made_of_the_markers_and_equals_the_parts(manifest: Manifest, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run_folder.clip_indices.read_part", None)  # no part is opened again
        index = write_index(manifest, tmp_path / "shards")
    assert (index.splits["train"].rows, index.splits["train"].rejected, index.splits["train"].missing) == (12, 1, 1)
    require_clip_index(tmp_path / "shards")
    assert list(ShardReader(tmp_path / "shards", ["train"]).clip_ids)[:4] == ["0.wav", "1.wav", "3.wav", "5.wav"]


def test_parts_of_an_earlier_version_get_the_same_clip_index(manifest: Manifest, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    wanted, folder = write_index(manifest, shards), prepare(manifest, shards)
    for part in folder.parts:
        marker = read_hashed_json(part.marker, "Marker")
        kept = {key: marker[key] for key in marker.keys() - {"num_frames", "crc32", "group_offsets"}}
        write_hashed_json(part.marker, kept)
    (shards / "train" / CLIP_INDEX).unlink()
    assert write_index(manifest, shards) == wanted
    require_clip_index(shards)

    (shards / "test" / "part-00000.parquet").rename(tmp_path / "elsewhere")  # as in an object store
    index = folder.write_index(manifest, FRONT_END, folder.count()[0], TENTHS_OF_CLASSES)
    assert (index.splits["test"].clip_index, index.splits["train"]) == ("", wanted.splits["train"])
    assert not (shards / "test" / CLIP_INDEX).exists()


def test_changed_clip_gets_a_new_clip_index_and_the_earlier_one_is_not_used(
    manifest: Manifest, tmp_path: Path, save_tone: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    shards = tmp_path / "shards"
    before, earlier = write_index(manifest, shards), (shards / "train" / CLIP_INDEX).read_bytes()
    save_tone(tmp_path / "data" / "4.wav", seconds=0.5)
    after = write_index(load_manifest(tmp_path / "data" / "list.csv"), shards)
    assert after.splits["train"].clip_index != before.splits["train"].clip_index
    assert after.splits["test"] == before.splits["test"]
    require_clip_index(shards)
    assert not caplog.records
    (shards / "train" / CLIP_INDEX).write_bytes(earlier)
    reader = ShardReader(shards, ["train"])
    assert (len(reader), reader.clip_ids[3]) == (13, "4.wav")
    assert "or of other shards" in caplog.text


def test_stop_between_clip_index_and_index_leaves_no_shards_that_are_taken_for_complete(
    manifest: Manifest, tmp_path: Path, save_tone: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    write_index(manifest, shards)
    save_tone(tmp_path / "data" / "4.wav", seconds=0.5)
    changed = load_manifest(tmp_path / "data" / "list.csv")

    class KilledError(Exception):
        pass

    def stop(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run_folder.shard_folder.write_hashed_json", stop)
        with pytest.raises(KilledError):
            write_index(changed, shards)
    assert not (shards / "index.json").exists()
    write_index(changed, shards)
    require_clip_index(shards)


def test_what_other_parts_and_killed_writers_left_is_removed(manifest: Manifest, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_index(manifest, shards)
    (shards / "train" / f".{CLIP_INDEX}.abcdefgh").write_bytes(b"left by a killed writer")
    (shards / "old").mkdir()
    (shards / "old" / CLIP_INDEX).write_bytes(b"of a split that is gone")
    write_index(manifest, shards, part=5)
    names = {path.name for path in shards.rglob("*") if path.is_file()}
    assert not {name for name in names if name.startswith(".")}
    assert sorted(path.parent.name for path in shards.rglob(CLIP_INDEX)) == ["test", "train"]
    require_clip_index(shards)


def test_another_node_downloads_it_and_does_without_a_damaged_one(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for root in (first, second, third):
        ObjectStore(root, f"file://{tmp_path / 'stored'}").attach()
    write_index(manifest, first / "shards")
    download_shards(second / "shards", ["train"])
    require_clip_index(second / "shards", ["train"])
    assert not (second / "shards" / "test").exists()
    wanted = ShardReader(second / "shards", ["train"])
    assert not caplog.records

    (tmp_path / "stored" / "shards" / "train" / CLIP_INDEX).write_bytes(b"damaged")
    download_shards(third / "shards", ["train"])
    found = ShardReader(third / "shards", ["train"])
    assert "clips.arrow is missing, damaged" in caplog.text
    np.testing.assert_array_equal(found.read(np.arange(12)), wanted.read(np.arange(12)))
