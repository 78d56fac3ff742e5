"""Parts that are decoded and committed by different workers have the bytes of parts that one worker makes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import ray.data
import soundfile
from listed_audio import FRONT_END, files, write_clips

from ast_core.dataset.clips import Clip
from ast_core.errors import UserError
from pipeline.preparation import part_device
from pipeline.preparation.part_stream import stream_parts
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.liveness import LivenessWatch
from pipeline.ray_runtime.shard_part import PartResult, PartTask, ShardMetadata, ShardPart

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(300)]
CLIPS, PER_PART = 48, 12
LONG_S = 200
"""Length of a recording of which each part has the last second, so that its decoding can be interrupted."""
Stream = Callable[[list[PartTask]], ray.data.Dataset]


def parts_of(audio: Path, shards: Path) -> list[ShardPart]:
    """Return parts of clips, of which one is no audio, one is too short, and one does not exist."""
    names = sorted(path.name for path in audio.glob("good-*"))
    clips = [Clip(name, str(audio / name), (number % 2,), "train") for number, name in enumerate(names)]
    clips[3] = Clip("gone", "", (0,), "train")
    for number in range(0, CLIPS, PER_PART):
        clips[number] = Clip(f"end-{number}", str(audio / "long.wav"), (0,), "train", LONG_S - 1)
    metadata = ShardMetadata(FRONT_END, ("even", "odd"), single_label=True)
    return [
        ShardPart(
            str(shards), f"part-{start:05d}", "train", tuple(clips[start : start + PER_PART]), str(audio), metadata
        )
        for start in range(0, CLIPS, PER_PART)
    ]


def results(parts: list[ShardPart], stream: Stream) -> Iterator[PartResult]:
    with LivenessWatch("prepare", 3) as watch:
        tasks = [PartTask(part, (), watch.name) for part in parts]
        for row in stream(tasks).iter_rows():
            yield PartResult(**row)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    write_clips(folder, CLIPS)
    noise_N = np.random.default_rng(0).normal(0, 0.1, LONG_S * 48_000)
    soundfile.write(folder / "long.wav", noise_N, 48_000, subtype="PCM_16")
    (folder / "good-0005.wav").write_bytes(b"this is no audio")
    header = (folder / "good-0006.wav").read_bytes()[:44]
    (folder / "good-0007.wav").write_bytes(header[:40] + (200).to_bytes(4, "little") + bytes(200))
    return folder


@pytest.fixture(scope="module")
def expected(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    shards = tmp_path_factory.mktemp("expected")
    stages = [reject["stage"] for part in parts_of(audio, shards) for reject in write_shard_part(part)]
    assert len(stages) - 1 == 2
    assert stages.count("missing") == 1
    return files(shards)


def stream_on_cpus(tasks: list[PartTask]) -> ray.data.Dataset:
    return stream_parts(tasks, 1, 1, "cpu")


def test_two_stages_make_the_same_files(audio: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    found = list(results(parts_of(audio, tmp_path), stream_on_cpus))
    assert sum(result.clips for result in found) == CLIPS
    assert [sum(getattr(result, name) for result in found) for name in ("missing", "rejected")] == [1, 2]
    assert files(tmp_path) == expected


def kill_each_once(names: list[str], killed: list[str], over: threading.Event) -> None:
    """Kill one Ray worker of each name while it works on a part; a look at all processes costs CPU time."""
    while names and not over.is_set():
        time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                for name in [name for name in names if title.startswith("ray::") and name in title]:
                    process.kill()
                    names.remove(name)
                    killed.append(name)


@pytest.mark.long  # test_prepare_killed.py kills workers that do both
def test_killed_workers_of_both_stages_lose_nothing(audio: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    names, killed, over = (
        ["MapBatches(decode_part)", "MapBatches(PartCommitter)).submit"],
        list[str](),
        threading.Event(),
    )
    thread = threading.Thread(target=kill_each_once, args=(names, killed, over))
    thread.start()
    try:
        found = list(results(parts_of(audio, tmp_path), stream_on_cpus))
    finally:
        over.set()
        thread.join()
    assert killed
    assert not names, killed
    assert sum(result.clips for result in found) == CLIPS
    assert [sum(getattr(result, name) for result in found) for name in ("missing", "rejected")] == [1, 2]
    assert files(tmp_path, "part-*") == expected  # what a killed worker left behind is hidden, and the index removes it


def test_a_disk_fault_in_a_decoder_is_the_sentence_of_the_part(audio: Path, tmp_path: Path) -> None:
    parts = parts_of(audio, tmp_path)[:1]
    clip = Clip("x", str(tmp_path / "a.parquet"), (0,), "train", member=(0, 0))
    (tmp_path / "a.parquet").write_bytes(b"this is no Parquet file")
    part = ShardPart(str(tmp_path), "part-00000", "train", (clip,), str(tmp_path), parts[0].metadata)
    (result,) = results([part], stream_on_cpus)
    assert "a.parquet, row group 0, row 0 could not be read" in result.error
    assert not list(tmp_path.glob("part*"))


def test_gpus_that_the_cluster_cannot_have_are_refused() -> None:
    for asked, known in (("cuda", ""), ("cuda", "cpu"), ("auto", "cuda")):
        with pytest.raises(UserError, match=r"but no node of the Ray cluster has a GPU.*--prepare\.device cpu"):
            part_device.choose_device(asked, known)
    for asked, known in (("auto", ""), ("auto", "cpu"), ("cpu", "cuda"), ("cpu", "")):
        assert part_device.choose_device(asked, known) == "cpu"
