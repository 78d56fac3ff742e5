"""The clips of a run's data set keep the splits that its shards were made with."""

from __future__ import annotations

from pathlib import Path

from prepared import write_shards

from ast_core.config import DataConfig
from ast_core.dataset.stratified_split import HASH_ALONE, TENTHS_OF_CLASSES, hashed_split
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from pipeline.run_folder.listed_clips import list_clips


def make_data(root: Path) -> DataConfig:
    for name in (f"{label}/{n}_{n % 3}.wav" for label in ("car", "dog") for n in range(8)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return DataConfig(source=str(root))


def test_shards_of_version_0_1_0_keep_the_splits_by_hash_alone(tmp_path: Path) -> None:
    data = make_data(tmp_path / "clips")
    shards = write_shards(tmp_path / "shards", {"train": 4})  # as 0.1.0 wrote them: without the rule
    manifest, rule = list_clips(data, tmp_path / "clips", shards)
    assert rule == HASH_ALONE
    assert all(clip.split == hashed_split(clip.clip_id) for clip in manifest.clips)

    index = read_hashed_json(shards / "index.json", "Index")
    write_hashed_json(shards / "index.json", {**index, "split_rule": TENTHS_OF_CLASSES})
    manifest, rule = list_clips(data, tmp_path / "clips", shards)
    assert rule == TENTHS_OF_CLASSES
    assert {clip.split for clip in manifest.clips} == {"train", "validation", "test"}


def test_new_shards_groups_and_a_damaged_index_take_the_present_rule(tmp_path: Path) -> None:
    data, shards = make_data(tmp_path / "clips"), tmp_path / "shards"
    assert list_clips(data, tmp_path / "clips", shards)[1] == TENTHS_OF_CLASSES
    write_shards(shards, {"train": 4})
    grouped = DataConfig(source=data.source, group="_([0-9])")
    assert list_clips(grouped, tmp_path / "clips", shards)[1] == TENTHS_OF_CLASSES
    (shards / "index.json").write_text("{")
    assert list_clips(data, tmp_path / "clips", shards)[1] == TENTHS_OF_CLASSES
