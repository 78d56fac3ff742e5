"""Why features differ from the published ones: only what differs has a remark."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from prepared import write_shards

from ast_core.config import AUDIOSET_MEAN, AUDIOSET_STD, DataConfig, FrontEndConfig
from ast_core.errors import UserError
from ast_core.serialization import to_dict
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from pipeline.cli.stages import FeaturesSettings
from pipeline.features import features


@pytest.fixture
def settings(tmp_path: Path) -> FeaturesSettings:
    write_shards(tmp_path / "shards", {"train": 6, "test": 3})
    return FeaturesSettings(run_dir=tmp_path, shards=tmp_path / "shards")


def remarks(settings: FeaturesSettings) -> dict[str, str]:
    return {what: remark for what, _, _, remark in features(settings)}


def test_what_differs_is_said_and_what_does_not_is_not(settings: FeaturesSettings, capsys) -> None:
    found = remarks(settings)
    assert "grid" in found["num_mel_bins"]
    assert found["target_frames"]
    assert not found["window"]
    assert not found["sample_rate_hz"]
    assert "dB" in found["mean of the shards"]
    assert not found["normalised with"]
    assert f"{AUDIOSET_MEAN:.4f}" in capsys.readouterr().out


def test_another_window_rate_and_borrowed_statistics_are_told(settings: FeaturesSettings) -> None:
    index = read_hashed_json(settings.shards / "index.json", "index")
    other = to_dict(FrontEndConfig(window="hamming", sample_rate_hz=32_000))
    write_hashed_json(settings.shards / "index.json", index | {"front_end": other})
    borrowed = DataConfig(mean=AUDIOSET_MEAN, std=AUDIOSET_STD)
    found = remarks(dataclasses.replace(settings, data=borrowed))
    assert "paper" in found["window"]
    assert found["sample_rate_hz"]
    assert "would be at" in found["normalised with"]


def test_without_shards_it_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        features(FeaturesSettings(run_dir=tmp_path, shards=tmp_path / "none"))
