"""Prediction on Ray: the same rows for one and two workers and without Ray, also if a worker is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import SaveTone

from ast_core.weights.bundle import Bundle
from pipeline.cli.stages import PredictSettings
from pipeline.predict import predict
from pipeline.prediction import chunk_pool
from pipeline.prediction.chunk_predictor import PredictTask
from pipeline.prediction.row_folder import RowFolder
from pipeline.ray_runtime import internals

RECORDINGS = 100


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, save_tone: SaveTone) -> Path:
    """Write good recordings of one window or several, one that is too short, and one that is broken."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(RECORDINGS - 2):
        save_tone(folder / f"{number:03d}.wav", 0.2 + 0.03 * (number % 40), 200 + 30 * number)
    save_tone(folder / "short.wav", 0.01)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


def settings(recordings: Path, bundle: Path, output: Path, workers: int) -> PredictSettings:
    return PredictSettings(
        inputs=(str(recordings),), model=str(bundle), output=f"{output}/", workers=workers, gpus="no"
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(240)
def test_rows_are_the_same_for_one_and_two_workers_and_for_a_killed_worker(
    recordings: Path, trained_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = PredictSettings(
        inputs=(str(recordings / "0*.wav"), str(recordings)), model=str(trained_bundle), gpus="no",
        output=str(tmp_path / "here.parquet"),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.predict.FEW", RECORDINGS + 1)
        predict(alone)
    summary = predict(settings(recordings, trained_bundle, tmp_path / "one", 1))
    assert (summary.listed, summary.predicted, summary.refused) == (RECORDINGS, RECORDINGS - 2, 2)
    killed = kill_worker_once(monkeypatch)
    predict(settings(recordings, trained_bundle, tmp_path / "two", 2))
    assert len(killed) == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    here = {row["path"]: row for row in pq.read_table(tmp_path / "here.parquet").to_pylist()}
    rows = pq.read_table(tmp_path / "two").to_pylist()
    assert sorted(here) == sorted(row["path"] for row in rows)
    for row in rows:
        other = here[row["path"]]
        assert (row["error"], row["start_s"], row["end_s"]) == (other["error"], other["start_s"], other["end_s"])
        if not row["error"]:
            assert np.abs(np.subtract(row["probabilities"], other["probabilities"])).max() < 1e-6


def kill_worker_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the first file that is written kill a worker; return the list that then holds the worker's process."""
    write, killed = RowFolder.write_part, []

    def write_and_kill(self: RowFolder, name: str, content: bytes) -> None:
        write(self, name, content)
        workers = () if killed else find_workers()
        for process in list(workers)[:1]:
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    monkeypatch.setattr(RowFolder, "write_part", write_and_kill)
    return killed


def find_workers() -> Iterator[int]:
    """Yield the processes of the pool's actors on this machine that descend from this process."""
    for process in psutil.Process().children(recursive=True):
        if "ChunkWorker" in " ".join(process.cmdline()):
            yield process.pid


@pytest.mark.usefixtures("ray_session")
def test_a_node_without_the_folder_gets_the_bundle_from_ray(
    trained_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internals, "is_local", lambda: False)
    files = chunk_pool._share_bundle(trained_bundle)
    digest = Bundle.load(trained_bundle).digest
    options = chunk_pool.PoolOptions(trained_bundle, digest, PredictTask(False, 5, 0.0), "no", node_id="another")
    with chunk_pool._find_bundle(options, files) as folder:
        assert folder != trained_bundle
        assert Bundle.load(folder).digest == digest
    assert not folder.exists()
