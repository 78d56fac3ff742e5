"""R27: rows in = rows out + rejects, or a non-zero exit. tests/pipeline/test_run.py checks a complete run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listed_audio import flags, prepare_settings, require_balance, write_clips, write_list

from ast_core.errors import DamagedError
from ast_core.shards.index import ShardIndex
from ast_core.shards.reader import ShardReader
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from pipeline import calibrate, evaluate, predict, prepare
from pipeline.cli.stages import PrepareSettings

CLIPS = 20


@pytest.fixture
def settings(tmp_path: Path) -> PrepareSettings:
    names = write_clips(tmp_path / "data", CLIPS)
    (tmp_path / "data" / names[7]).write_bytes(b"broken")
    (tmp_path / "data" / names[9]).unlink()
    return prepare_settings(write_list(tmp_path / "data" / "list.csv", names), tmp_path / "shards", 5)


def lose_a_reject(settings: PrepareSettings) -> None:
    """Write what a bug in a worker could write: a marker that names fewer clips than the worker was given."""
    markers = {path: read_hashed_json(path, "Marker") for path in settings.shards.glob("train/*.json")}
    path = next(path for path, marker in markers.items() if marker["rejects"])
    write_hashed_json(path, markers[path] | {"rejects": []})


def lose_a_row(settings: PrepareSettings, split: str) -> None:
    path = settings.shards / split / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path, compression="none", use_dictionary=False, row_group_size=8)


def count_one_too_many_in_the_index(settings: PrepareSettings, split: str) -> None:
    index = read_hashed_json(settings.shards / "index.json", "Index")
    index["splits"][split]["listed"] += 1
    write_hashed_json(settings.shards / "index.json", index)


def error_of(main: Callable[[list[str]], None], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a stage that exits with 1, and return what it prints on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.usefixtures("without_ray")
@pytest.mark.timeout(180)
def test_every_stage_notices_a_lost_row(
    settings: PrepareSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: Callable[..., None]
) -> None:
    counts = require_balance(prepare.prepare(settings), settings.shards, CLIPS)
    assert (counts["kept"], counts["rejected"], counts["missing"]) == (CLIPS - 2, 1, 1)
    lose_a_reject(settings)
    assert "differ: 16 clips listed, 15 seen" in error_of(prepare.main, flags(settings), capsys)
    for path in settings.shards.glob("train/*.json"):
        path.unlink()
    assert require_balance(prepare.prepare(settings), settings.shards, CLIPS) == counts
    words = [*flags(settings)[:6], "--data.train-splits", "train", "--data.test-split", "test"]
    words += ["--tracking", f"sqlite:///{tmp_path}/mlflow.db"]
    stages = {"evaluate": evaluate.main, "calibrate": calibrate.main}
    lost = 0
    for damage in (count_one_too_many_in_the_index, lose_a_row):
        for split in ("train", "test"):
            damage(settings, split)
        for name, main in stages.items():
            more = ["--data.validation-split", "train"] if name == "calibrate" else []
            said = error_of(main, [*words, *more], capsys)
            assert "Run prepare again" in said, (name, said)
            lost += 1
        prepare.prepare(settings)
    measured("R27", rows_lost=lost + 1, noticed=lost + 1)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.timeout(120)
def test_the_reader_refuses_shards_whose_counts_differ(settings: PrepareSettings) -> None:
    prepare.prepare(settings)
    assert len(ShardReader(settings.shards, ["train", "test"])) == CLIPS - 2
    count_one_too_many_in_the_index(settings, "train")
    ShardReader(settings.shards, ["test"])
    with pytest.raises(DamagedError, match="counts of train do not balance: 17 listed, 14 kept in 14 rows"):
        ShardReader(settings.shards, ["train"])
    assert ShardIndex.load(settings.shards)


@pytest.mark.timeout(120)
def test_predict_writes_one_row_for_each_file(
    tmp_path: Path, trained_bundle: Path, measured: Callable[..., None]
) -> None:
    names = write_clips(tmp_path / "in", 6)
    (tmp_path / "in" / names[2]).write_bytes(b"broken")
    (tmp_path / "in" / names[3]).unlink()
    (tmp_path / "in" / names[3]).symlink_to("nothing.wav")
    twice = [str(tmp_path / "in"), str(tmp_path / "in" / names[0])]
    predict.main([*twice, "--model", str(trained_bundle), "--output", str(tmp_path / "out.parquet")])
    table: pa.Table = pq.read_table(tmp_path / "out.parquet")
    found = {Path(row["path"]).name: row["error"] for row in table.to_pylist()}
    assert len(table) == len(found) == len(names)
    assert {name for name, error in found.items() if error} == {names[2], names[3]}
    measured("R27", files=len(names), refused=2)
