"""Prepare writes the same row for each recording of WebDataset archives as for the same recordings in class folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import webdataset_archives as archives
from listed_audio import prepare_settings, rejects, require_balance, rows, write_clips

from ast_core.config import DataConfig
from pipeline.cli.stages import PrepareSettings
from pipeline.prepare import prepare

pytestmark = [pytest.mark.usefixtures("without_ray"), pytest.mark.timeout(180)]
COUNT = 24


def settings_for(source: Path, run: Path) -> PrepareSettings:
    data = DataConfig(source=str(source), train_splits=("train",), validation_split="", test_split="test")
    return dataclasses.replace(prepare_settings(source, run / "shards", 8), data=data)


def by_name(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return rows by the names of the recordings, without what depends on the ids."""
    return {Path(key).stem: {**row, "clip_id": "", "crc32": 0} for key, row in found.items()}


def test_rows_from_archives_are_those_of_loose_files(tmp_path: Path) -> None:
    loose, packed = tmp_path / "loose", tmp_path / "packed"
    names = write_clips(tmp_path, COUNT)
    (tmp_path / names[5]).write_bytes(b"this is no audio")
    members: dict[str, list[archives.Member]] = {"train": [], "test": []}
    for number, name in enumerate(names):
        split, label = "test" if number < 8 else "train", "odd" if number % 2 else "even"
        path = loose / split / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(path)
        members[split] += [(f"{path.stem}.wav", path.read_bytes()), (f"{path.stem}.cls", label.encode())]
    for split, own in members.items():
        for place in range(0, len(own), 10):
            archives.write(packed / f"{split}-{place:06d}.tar", own[place : place + 10])
    made = {}
    for source in (loose, packed):
        settings = settings_for(source, tmp_path / f"run-{source.name}")
        index = prepare(settings)
        require_balance(index, settings.shards, COUNT)
        reasons = {Path(key).stem: (row["stage"], row["split"]) for key, row in rejects(settings.shards).items()}
        made[source] = (by_name(rows(settings.shards)), reasons, index.labels)
    assert made[loose] == made[packed]
    assert len(made[packed][0]) == COUNT - 1
    again = prepare(settings)  # nothing is redone
    assert again == index
