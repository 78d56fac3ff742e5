"""Prepare keeps, rejects or misses each listed clip, does nothing twice, and resumes after an interruption."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torchaudio.compliance import kaldi

from ast_core.audio.waveform import load_waveform
from ast_core.config import DataConfig, FrontEndConfig, PrepareConfig
from ast_core.dataset.manifest import load_manifest
from ast_core.dataset.synthetic import make_demo_audio
from ast_core.errors import DamagedError, UserError
from ast_core.shards.index import ShardIndex
from ast_core.shards.reader import ShardReader
from pipeline.cli.stages import PrepareSettings
from pipeline.preparation.part_writer import write_shard_part
from pipeline.prepare import main, plan, prepare
from pipeline.ray_runtime.shard_part import ShardPart
from pipeline.run_folder import folder_lock

pytestmark = [pytest.mark.usefixtures("without_ray"), pytest.mark.timeout(120)]
CLIPS = {"train": 7, "test": 3}
FRAMES, BINS = 32, 16


@pytest.fixture
def settings(tmp_path: Path, save_tone: Callable[..., Path]) -> PrepareSettings:
    """Return settings for ten clips of two classes, three per part."""
    lines = ["clip_id,path,labels,split"]
    for split, count in CLIPS.items():
        for n in range(count):
            save_tone(tmp_path / "data" / f"{split}-{n}.wav", seconds=0.2 + 0.05 * n, pitch_hz=300 + 200 * n, seed=n)
            lines.append(f"{split}-{n},{split}-{n}.wav,{'low' if n < 2 else 'high'},{split}")
    (tmp_path / "data" / "list.csv").write_text("\n".join(lines) + "\n")
    return PrepareSettings(
        run_dir=tmp_path / "run", shards=tmp_path / "shards", workers=2,
        data=DataConfig(source=str(tmp_path / "data" / "list.csv"), layout="manifest"),
        prepare=PrepareConfig(clips_per_part=3, max_reject_share=0.2),
        front_end=FrontEndConfig(target_frames=FRAMES, num_mel_bins=BINS),
    )  # fmt: skip


def data(settings: PrepareSettings) -> Path:
    return Path(settings.data.source).parent


def contents(settings: PrepareSettings) -> dict[str, bytes]:
    return {
        str(path.relative_to(settings.shards)): path.read_bytes()
        for path in sorted(settings.shards.rglob("*"))
        if path.is_file() and path.name not in {folder_lock.LOCK, folder_lock.HOLDER}
    }


def written(settings: PrepareSettings) -> dict[str, tuple[int, int]]:
    """Return inode and time of each part; they change when a part is written again."""
    parts = settings.shards.glob("*/*.parquet")
    return {f"{p.parent.name}/{p.stem}": (p.stat().st_ino, p.stat().st_mtime_ns) for p in parts}


def redone(settings: PrepareSettings, before: dict[str, tuple[int, int]]) -> set[str]:
    return {name for name, seen in written(settings).items() if before.get(name) != seen}


def rejects(settings: PrepareSettings) -> dict[str, dict[str, str]]:
    return {row["clip_id"]: row for row in pq.read_table(settings.shards / "rejects.parquet").to_pylist()}


def books(index: ShardIndex, split: str) -> tuple[int, ...]:
    return tuple(getattr(index.splits[split], key) for key in ("listed", "kept", "rejected", "missing"))


def test_a_moved_data_set_keeps_its_shards(settings: PrepareSettings, tmp_path: Path) -> None:
    index = prepare(settings)
    before = written(settings)
    data(settings).rename(tmp_path / "moved")
    moved = dataclasses.replace(settings.data, source=str(tmp_path / "moved" / "list.csv"))
    assert prepare(dataclasses.replace(settings, data=moved)) == index
    assert redone(settings, before) == set()


def lose_marker(part: Path) -> None:
    part.with_suffix(".json").unlink()


def empty_marker(part: Path) -> None:
    part.with_suffix(".json").write_bytes(b"")


def truncate(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-100])


def flip(part: Path) -> None:
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 3] ^= 16
    part.write_bytes(damaged)


@pytest.mark.parametrize("damage", [lose_marker, empty_marker, truncate, flip, Path.unlink], ids=lambda d: d.__name__)
def test_a_damaged_part_is_made_again_byte_for_byte(settings: PrepareSettings, damage: Callable[[Path], None]) -> None:
    prepare(settings)
    whole, before = contents(settings), written(settings)
    damage(settings.shards / "train" / "part-00001.parquet")
    (settings.shards / "train" / ".part-00001.parquet.killed").write_bytes(b"left by a killed writer")
    (settings.shards / "index.json").unlink()
    prepare(settings)
    assert contents(settings) == whole
    assert redone(settings, before) == {"train/part-00001"}


def test_a_truncated_part_is_not_read(settings: PrepareSettings) -> None:
    prepare(settings)
    truncate(settings.shards / "test" / "part-00000.parquet")
    with pytest.raises(DamagedError, match="Run prepare again"):
        ShardReader(settings.shards, ["test"])


def test_parts_that_the_index_does_not_name_are_removed(settings: PrepareSettings) -> None:
    prepare(settings)
    prepare(dataclasses.replace(settings, prepare=PrepareConfig(clips_per_part=100)))
    assert set(written(settings)) == {"train/part-00000", "test/part-00000"}


def test_every_clip_is_kept_rejected_or_missing(settings: PrepareSettings) -> None:
    prepare(settings)
    good_NTM = ShardReader(settings.shards, ["train"]).read(np.arange(7))
    opened = ShardReader(settings.shards, ["train"])
    (data(settings) / "train-0.wav").write_bytes(b"not audio at all")
    (data(settings) / "train-5.wav").unlink()
    index = prepare(settings)
    assert books(index, "train") == (7, 5, 1, 1)
    found = rejects(settings)
    assert (found["train-0"]["stage"], found["train-5"]["stage"]) == ("decode", "missing")
    assert found["train-0"]["path"].endswith("train-0.wav")
    assert all(row["reason"] and row["split"] == "train" for row in found.values())
    reader = ShardReader(settings.shards, ["train"])
    kept = [n for n in range(7) if n not in (0, 5)]
    assert reader.clip_ids == [f"train-{n}" for n in kept]
    np.testing.assert_array_equal(reader.read(np.arange(5)), good_NTM[kept])
    with pytest.raises(DamagedError, match="changed after they were opened"):
        opened.read(np.array([1]))


def test_too_many_rejects_stop_the_stage_before_its_index(settings: PrepareSettings) -> None:
    (data(settings) / "train-0.wav").write_bytes(b"junk")
    strict = dataclasses.replace(settings, prepare=PrepareConfig(clips_per_part=3, max_reject_share=0.05))
    with pytest.raises(UserError, match=r"1 of 10 clips were rejected.*rejects.parquet"):
        prepare(strict)
    assert set(rejects(settings)) == {"train-0"}
    assert not (settings.shards / "index.json").exists()


def test_parts_made_during_a_lost_mount_are_made_again(settings: PrepareSettings, tmp_path: Path) -> None:
    whole = contents(settings) if prepare(settings) else {}
    shutil.rmtree(settings.shards)
    manifest = load_manifest(Path(settings.data.source), "manifest")
    parts = plan(settings, manifest, Path(settings.data.source))
    data(settings).rename(tmp_path / "unmounted")
    for part in parts:
        write_shard_part(part)
    assert all(json.loads(part.marker.read_text())["rows"] == 0 for part in parts)
    (tmp_path / "unmounted").rename(data(settings))
    prepare(settings)
    assert contents(settings) == whole


def test_file_names_that_are_not_utf8_are_shown_as_escapes(settings: PrepareSettings, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "folders")
    for split in (b"train", b"test"):
        Path(os.fsdecode(folder + b"/" + split + b"/dog")).mkdir(parents=True)
        shutil.copy(data(settings) / "train-1.wav", os.fsdecode(folder + b"/" + split + b"/dog/\xff.wav"))
    os.link(data(settings) / "list.csv", os.fsdecode(folder + b"/train/dog/\xfe.wav"))
    source = DataConfig(source=str(tmp_path / "folders"), layout="folders")
    loose = PrepareConfig(max_reject_share=0.5)
    assert books(prepare(dataclasses.replace(settings, data=source, prepare=loose)), "train") == (2, 1, 1, 0)
    assert r"\xff" in ShardReader(settings.shards, ["test"]).clip_ids[0]


def test_a_shard_that_cannot_be_written_is_a_user_error(settings: PrepareSettings) -> None:
    settings.shards.mkdir()
    (settings.shards / "train").write_text("a file where the folder must be")
    with pytest.raises(UserError, match=r"train.* could not be .*run again"):
        prepare(settings)


@pytest.mark.parametrize(
    "change", [{"train_splits": ("training",)}, {"test_split": "final"}, {"validation_split": "v"}]
)
def test_a_missing_split_is_named(settings: PrepareSettings, change: dict[str, Any]) -> None:
    wrong = dataclasses.replace(settings, data=dataclasses.replace(settings.data, **change))
    with pytest.raises(UserError, match=r"has no split (training|final|v); it has test, train"):
        prepare(wrong)


def test_a_part_survives_packing_for_a_worker(settings: PrepareSettings) -> None:
    manifest = load_manifest(Path(settings.data.source), "manifest")
    for part in plan(settings, manifest, Path(settings.data.source)):
        assert ShardPart.unpacked(part.packed()) == part


def test_the_demos_audio_is_made_once_and_prepared(tmp_path: Path) -> None:
    first = make_demo_audio(tmp_path / "a" / "audio", train_clips=110, eval_clips=12)
    second = make_demo_audio(tmp_path / "b" / "audio", train_clips=110, eval_clips=12)
    seen = {path.relative_to(first): path.read_bytes() for path in first.rglob("*.*") if path.is_file()}
    assert seen == {path.relative_to(second): path.read_bytes() for path in second.rglob("*.*") if path.is_file()}
    marker = (first / "SYNTHESISED.json").stat()
    assert make_demo_audio(first, train_clips=110, eval_clips=12) == first
    assert (first / "SYNTHESISED.json").stat().st_mtime_ns == marker.st_mtime_ns
    arguments = ["--recipe", "demo", "--data.source", str(first), "--run-dir", str(tmp_path), "--workers", "2"]
    main([*arguments, "--front-end.target-frames", "64", "--front-end.num-mel-bins", "16"])
    index = ShardIndex.load(tmp_path / "shards")
    assert books(index, "balanced_train") == (110, 108, 1, 1)
    assert books(index, "eval") == (12, 12, 0, 0)
    assert len(index.labels) == 10
    assert 1.2 < ShardReader(tmp_path / "shards", ["balanced_train"]).labels_NC.sum(axis=1).mean() < 2.2


def test_a_folder_of_other_audio_is_not_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "audio" / "recording.wav"
    precious.parent.mkdir()
    precious.write_bytes(b"irreplaceable")
    with pytest.raises(UserError, match="not the demo's"):
        make_demo_audio(precious.parent)
    assert precious.read_bytes() == b"irreplaceable"


def test_a_set_whose_files_are_mostly_missing_is_refused_before_decoding(
    settings: PrepareSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(4):
        (data(settings) / f"train-{n}.wav").rename(data(settings) / f"other-{n}.wav")
    with pytest.raises(UserError, match=r"4 of 7 clips of train have no file, for example train-0.*max-missing-share"):
        prepare(settings)
    printed = capsys.readouterr().out
    assert "4 clips are listed, but have no file, for example train-0, train-1, train-2" in printed
    assert "4 files are audio, but named by no row of the list, for example other-0.wav" in printed
    assert not list(settings.shards.glob("*/*"))
    allowed = dataclasses.replace(settings.prepare, max_missing_share=0.6)
    index = prepare(dataclasses.replace(settings, prepare=allowed))
    assert books(index, "train") == (7, 3, 0, 4)
    assert [(found.count, found.examples[0]) for found in index.unlisted] == [(4, "other-0.wav")]
    assert ShardIndex.load(settings.shards) == index


def test_segments_and_clips_without_a_label_are_prepared(
    settings: PrepareSettings, save_tone: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_tone(data(settings) / "long.wav", seconds=3.0, pitch_hz=440)
    rows = [
        f"long.wav,{'dog' if n % 2 else ''},{n / 4},{n / 4 + 0.3},{'test' if n > 8 else 'train'}" for n in range(11)
    ]
    rows += ["long.wav,dog,2.9,3.5,train", "long.wav,cat,,,train"]
    Path(settings.data.source).write_text("path,labels,start_s,end_s,split\n" + "\n".join(rows) + "\n")
    index = prepare(settings)
    assert books(index, "train") == (11, 10, 1, 0)
    assert rejects(settings)["long.wav#2.9-3.5"]["reason"] == "the segment ends at 3.5 s, the recording at 3 s"
    assert "6 clips are without a label, so negatives of every class" in capsys.readouterr().out
    assert not index.single_label
    reader = ShardReader(settings.shards, ["train"])
    assert reader.clip_ids[:2] == ["long.wav#0-0.3", "long.wav#0.25-0.55"]
    assert reader.labels_NC[:2].tolist() == [[0, 0], [0, 1]]
    wave = torch.from_numpy(load_waveform(data(settings) / "long.wav", 16_000)[4000:8800])
    expected_TM = kaldi.fbank(
        (wave - wave.mean())[None], htk_compat=True, window_type="hanning", num_mel_bins=BINS, dither=0.0
    )
    np.testing.assert_allclose(reader.read(np.array([1]))[0][: len(expected_TM)], expected_TM, atol=0.03)
    before = written(settings)
    assert prepare(settings) == index
    assert redone(settings, before) == set()
