"""The comparison of the shards' front end with the published one: only what differs has a remark."""

from __future__ import annotations

from pathlib import Path

import pytest
from prepared import write_shards

from ast_core.config import AUDIOSET_MEAN, AUDIOSET_STD, DataConfig, FrontEndConfig
from ast_core.serialization import to_dict
from ast_core.shards.index import ShardIndex
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from pipeline.reporting.front_end_comparison import Comparison, compare_front_ends


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", {"train": 6, "test": 3})


def compare(shards: Path, **data: float) -> dict[str, Comparison]:
    return {row.name: row for row in compare_front_ends(ShardIndex.load(shards), DataConfig(**data))}


def test_only_settings_that_differ_have_a_remark(shards: Path) -> None:
    found = compare(shards)
    assert "grid" in found["num_mel_bins"].remark
    assert found["target_frames"].remark
    assert not found["window"].remark
    assert not found["sample_rate_hz"].remark
    assert "dB" in found["mean of the shards"].remark
    assert found["mean of the shards"].published == f"{AUDIOSET_MEAN:.4f}"
    assert not found["normalised with"].remark


def test_another_window_rate_and_borrowed_statistics_have_remarks(shards: Path) -> None:
    index = read_hashed_json(shards / "index.json", "index")
    other = to_dict(FrontEndConfig(window="hamming", sample_rate_hz=32_000))
    write_hashed_json(shards / "index.json", index | {"front_end": other})
    found = compare(shards, mean=AUDIOSET_MEAN, std=AUDIOSET_STD)
    assert "paper" in found["window"].remark
    assert found["sample_rate_hz"].remark
    assert "mean becomes" in found["normalised with"].remark
