"""Prepare makes the same shards from Parquet and tar as from loose files, and resumes to the same bytes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import parquet_recordings
import psutil
import pytest
import ray
from killed_prepares import part_makers, started
from listed_audio import FRONT_END, files, prepare_settings, require_balance, rows, write_clips, write_list, written
from packed_recordings import like, write_parquet, write_tar

from ast_core.dataset.clips import Clip, Manifest
from ast_core.errors import UserError
from ast_core.shards.index import ShardIndex
from pipeline import prepare as stage
from pipeline.cli.stages import PrepareSettings
from pipeline.prepare import plan, prepare

pytestmark = pytest.mark.timeout(180)
PER_FILE, GROUP = 24, 8
Listed = tuple[PrepareSettings, Manifest]


def listed(folder: Path, shards: Path, clips: tuple[Clip, ...], column: str = "") -> Listed:
    """Return settings and the list of clips that a loader would return for them."""
    manifest = Manifest(clips, ("even", "odd"), single_label=True, layout="parquet", audio_column=column)
    return prepare_settings(folder, shards, GROUP), manifest


@pytest.fixture
def kinds(tmp_path: Path) -> dict[str, Listed]:
    """Return the same clips as loose files, in two Parquet files, and in two tar archives."""
    folder = tmp_path / "data"
    names = write_clips(folder, 2 * PER_FILE)
    (folder / names[5]).write_bytes(b"this is no audio")
    contents = [(folder / name).read_bytes() for name in names]
    loose = tuple(
        Clip(name, str(folder / name), (n % 2,), "test" if n >= PER_FILE else "train") for n, name in enumerate(names)
    )
    parquet, tar = list[Clip](), list[Clip]()
    for number in range(2):
        own = contents[number * PER_FILE : (number + 1) * PER_FILE]
        parquet += write_parquet(folder / f"{number}.parquet", own, row_group_size=GROUP)
        tar += write_tar(folder / f"{number}.tar", own)
    parquet = [dataclasses.replace(clip, member=divmod(n % PER_FILE, GROUP)) for n, clip in enumerate(parquet)]
    return {
        "loose": listed(folder, tmp_path / "loose" / "shards", loose),
        "parquet": listed(folder, tmp_path / "parquet" / "shards", like(loose, parquet), "audio"),
        "tar": listed(folder, tmp_path / "tar" / "shards", like(loose, tar)),
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Return a function that prepares listed clips."""

    def run_listed(listed: Listed) -> ShardIndex:
        monkeypatch.setattr(stage, "list_clips", lambda *_: (listed[1], 2))
        return prepare(listed[0])

    return run_listed


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_every_kind_of_source_makes_the_same_shards(kinds: dict[str, Listed], run) -> None:
    hashes, parts = set(), []
    for settings, manifest in kinds.values():
        index = run((settings, manifest))
        require_balance(index, settings.shards, 2 * PER_FILE)
        hashes.add(index.data_hash)
        parts.append(files(settings.shards, "*.parquet") | {"rejects.parquet": b""})
        assert len(rows(settings.shards)) == 2 * PER_FILE - 1
    assert len(hashes) == 1
    assert parts[0] == parts[1] == parts[2]


@pytest.mark.usefixtures("without_ray")
def test_parquet_files_are_listed_and_prepared_like_a_list_of_files(tmp_path: Path) -> None:
    names = write_clips(tmp_path / "data", 12)
    loose = prepare_settings(write_list(tmp_path / "data" / "list.csv", names), tmp_path / "loose" / "shards", 4)
    columns = {
        "clip_id": names,
        "audio": [{"bytes": (tmp_path / "data" / name).read_bytes(), "path": name} for name in names],
        "label": ["odd" if number % 2 else "even" for number in range(12)],
        "split": ["test" if number < 4 else "train" for number in range(12)],
    }
    parquet_recordings.write(tmp_path / "packed" / "all.parquet", columns, row_group_size=4)
    settings = dataclasses.replace(
        prepare_settings(tmp_path / "packed", tmp_path / "parquet" / "shards", 4),
        data=dataclasses.replace(loose.data, source=str(tmp_path / "packed"), layout="auto"),
    )
    assert prepare(settings).data_hash == prepare(loose).data_hash
    assert files(settings.shards, "part-*.parquet") == files(loose.shards, "part-*.parquet")


@pytest.mark.usefixtures("without_ray")
def test_a_changed_file_is_read_again_and_the_others_are_not(kinds: dict[str, Listed], run, capsys) -> None:
    settings, manifest = kinds["parquet"]
    run((settings, manifest))
    before = written(settings.shards)
    assert run((settings, manifest))
    assert "there is nothing to do" in capsys.readouterr().out
    path = Path(manifest.clips[0].path)
    os.utime(path, (1, 1))
    run((settings, manifest))
    after = written(settings.shards)
    assert {name for name in after if after[name] != before[name]} == {f"train/part-0000{n}" for n in range(3)}


@pytest.mark.long  # tests/reliability/test_prepare_killed.py kills such a run, too
@pytest.mark.usefixtures("ray_session")
def test_a_killed_run_from_parquet_resumes_to_the_same_bytes(kinds: dict[str, Listed], run, tmp_path: Path) -> None:
    settings, manifest = kinds["parquet"]
    run((settings, manifest))
    expected = files(settings.shards)
    address = ray.get_runtime_context().gcs_address
    again = dataclasses.replace(settings, shards=tmp_path / "killed" / "shards", address=address)
    driver = started(again, tmp_path / "log", manifest)
    while driver.exitcode is None and not written(again.shards):
        driver.join(0.01)
    assert driver.exitcode is None, (tmp_path / "log").read_text()
    driver.kill()
    for worker in part_makers():
        worker.kill()
    driver.join()
    psutil.wait_procs(part_makers(), 30)
    kept = {name: seen for name, seen in written(again.shards).items() if (again.shards / f"{name}.json").is_file()}
    assert len(kept) < 6, "the run had ended before it was killed"
    run((again, manifest))
    assert kept.items() <= written(again.shards).items()
    assert files(again.shards) == expected


def test_parts_end_at_row_groups(kinds: dict[str, Listed]) -> None:
    settings, manifest = kinds["parquet"]
    for size, expected in ((GROUP, [8] * 3), (2 * GROUP + 1, [16, 8]), (3, [8] * 3)):
        chosen = dataclasses.replace(settings, prepare=dataclasses.replace(settings.prepare, clips_per_part=size))
        parts = plan(chosen, manifest, settings.data.source)
        assert [len(part.clips) for part in parts if part.split == "train"] == expected
        assert {part.audio_column for part in parts} == {"audio"}


@pytest.mark.usefixtures("ray_session")
def test_gpus_without_a_gpu_are_one_sentence_and_auto_is_the_cpu(kinds: dict[str, Listed], run) -> None:
    settings, manifest = kinds["loose"]
    for device in ("cuda", "auto"):
        chosen = dataclasses.replace(settings, prepare=dataclasses.replace(settings.prepare, device=device))
        if device == "cuda":
            with pytest.raises(UserError, match=r"prepare\.device is cuda, but no node of the Ray cluster has a GPU"):
                run((chosen, manifest))
        else:
            run((chosen, manifest))
    before = written(settings.shards)
    run((settings, manifest))  # the key of a CPU's shards does not name the device
    assert written(settings.shards) == before
    assert settings.front_end == FRONT_END
