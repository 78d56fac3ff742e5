"""The stage `embed`: every source of `predict`, data sets that a run completes, and the same rows on Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import write_run
from conftest import SaveTone
from packed_recordings import write_parquet, write_tar

import ast_core
from ast_core.errors import UserError
from pipeline.cli.stages import EmbedSettings
from pipeline.embed import embed

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pipeline.cli.stages import EmbedSettings
from pipeline.embed import embed
from pipeline.prediction.row_folder import RowFolder
recordings, model, output = sys.argv[1:]
write = RowFolder.write_part
def write_one(self, name, content):
    if any(path.suffix == ".parquet" for path in self._root.iterdir()):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, content)
RowFolder.write_part = write_one
embed(EmbedSettings((recordings,), output, model, gpus="no"))
"""
"""Program that is killed between its first and its second output file."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle of one member with random weights."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, seeds=(0,))
    return folder / "bundles" / "seed-0"


def write_recordings(folder: Path, count: int, save_tone: SaveTone) -> Path:
    for number in range(count):
        save_tone(folder / f"{number:03d}.wav", 0.2 + 0.03 * (number % 7), 200 + 30 * number)
    return folder


def settings(inputs: tuple[str, ...], bundle: Path, output: Path | str, **more: Any) -> EmbedSettings:
    return EmbedSettings(inputs, str(output), str(bundle), gpus="no", **more)


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a data set by path, after checking that no path has two."""
    rows = pq.read_table(folder).to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def test_each_source_of_predict_has_the_embeddings_of_the_loaded_model(
    bundle: Path, tmp_path: Path, save_tone: SaveTone, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_recordings(tmp_path / "in", 3, save_tone)
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("no audio")
    contents = [path.read_bytes() for path in sorted(folder.glob("0*.wav"))]
    write_parquet(tmp_path / "packed.parquet", contents[:2])
    write_tar(tmp_path / "packed.tar", contents[:2])
    inputs = (f"{folder}/0*.wav", str(folder), str(folder / "001.wav"), f"{tmp_path}/packed.*")
    counts = embed(settings(inputs, bundle, tmp_path / "out"))
    assert (counts.listed, counts.known, counts.embedded, counts.refused) == (10, 0, 7, 3)  # the archive has two texts
    shown = capsys.readouterr().out
    assert "10 files = 7 embedded + 3 refused" in shown
    assert "One row a recording, 96 values of member seed-0, block 4, windows of 32 frames: " in shown
    assert "1 file is not audio" in shown
    rows, model = read_rows(tmp_path / "out"), ast_core.load(bundle, device="cpu")
    for number in range(3):
        path = str(folder / f"{number:03d}.wav")
        assert rows[path]["embedding"] == model.embed(path).clip.tolist()
    embeddings = [row["embedding"] for name, row in rows.items() if "packed." in name and not row["error"]]
    assert sorted(embeddings[:2]) == sorted(embeddings[2:]) == sorted(
        rows[str(folder / name)]["embedding"] for name in ("000.wav", "001.wav")
    )  # fmt: skip
    again = embed(settings((str(folder),), bundle, tmp_path / "out"))
    assert (again.listed, again.known) == (4, 4)


def test_a_killed_run_is_completed_to_the_same_files(bundle: Path, tmp_path: Path, save_tone: SaveTone) -> None:
    folder = write_recordings(tmp_path / "in", 20, save_tone)
    embed(settings((str(folder),), bundle, tmp_path / "whole"))
    arguments = [str(folder), str(bundle), str(tmp_path / "out")]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 1
    counts = embed(settings((str(folder),), bundle, tmp_path / "out"))
    assert (counts.known, counts.embedded) == (16, 4)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name[0] != "."}
        for name in ("whole", "out")
    ]
    assert contents[0] == contents[1]


def test_what_cannot_be_embedded_is_refused_in_one_sentence(bundle: Path, tmp_path: Path, save_tone: SaveTone) -> None:
    path = str(save_tone(tmp_path / "a.wav"))
    with pytest.raises(UserError, match="There is nothing to embed; give audio files or folders"):
        embed(settings((), bundle, tmp_path / "out"))
    with pytest.raises(UserError, match=r"nothing\.wav does not exist"):
        embed(settings((str(tmp_path / "nothing.wav"),), bundle, tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="No audio file was found in"):
        embed(settings((str(tmp_path / "empty"),), bundle, tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes.txt, but no _embeddings.json: embed did not write it"):
        embed(settings((path,), bundle, tmp_path / "mine"))
    with pytest.raises(UserError, match=r"--output .*a\.wav is a file; give a folder's name"):
        embed(settings((path,), bundle, path))
    with pytest.raises(UserError, match="this model has 4 blocks"):
        embed(settings((path,), bundle, tmp_path / "out", layer=5))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="No file could be used; the table says why"):
        embed(settings((str(tmp_path / "broken.wav"),), bundle, tmp_path / "broken"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "broken" / "part-0.parquet")
    with pytest.raises(UserError, match=r"part-0.parquet cannot be read: it has no column path, so embed did not"):
        embed(settings((path,), bundle, tmp_path / "broken"))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(240)
def test_workers_on_ray_write_the_rows_of_one_process(bundle: Path, tmp_path: Path, save_tone: SaveTone) -> None:
    folder = write_recordings(tmp_path / "in", 40, save_tone)
    (folder / "broken.wav").write_bytes(b"RIFF")
    embed(settings((str(folder),), bundle, tmp_path / "here", frames=True, target_frames=16))
    counts = embed(settings((str(folder),), bundle, tmp_path / "there", frames=True, target_frames=16, workers=2))
    assert (counts.listed, counts.embedded, counts.refused) == (41, 40, 1)
    here, there = pq.read_table(tmp_path / "here"), pq.read_table(tmp_path / "there")
    names = ["path", "start_s", "end_s", "error"]
    assert there.select(names).equals(here.select(names))
    one, other = (np.array(table["embedding"].to_pylist(), np.float32) for table in (here, there))
    assert np.nanmax(np.abs(one - other)) < 1e-4  # batches of other windows round otherwise
