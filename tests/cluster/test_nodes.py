"""Several nodes without a shared disk: one dies in the middle of preparing, one of training, and the job ends right."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nodes
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import servers
from prepared import BINS, FRAMES, write_shards

from ast_core.audio.waveform import load_waveform
from ast_core.config import DataConfig, FrontEndConfig, PrepareConfig
from ast_core.dataset.manifest import load_manifest
from ast_core.evaluation.predictor import Predictor
from ast_core.storage.atomic_files import list_stored
from ast_core.storage.file_systems import open_filesystem
from ast_core.storage.json_files import read_json
from ast_core.storage.object_store import ObjectStore
from ast_core.weights.bundle import Bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import PredictSettings, PrepareSettings, ReportSettings
from pipeline.predict import predict
from pipeline.preparation.part_writer import write_shard_part
from pipeline.prepare import plan, prepare
from pipeline.report import report
from pipeline.run_folder import downloads

pytestmark = [pytest.mark.ray, pytest.mark.server]

IMPATIENT = str(nodes.ROOT / "tests" / "support" / "impatient_prepare.py")
PARTS, CLIPS = 40, 12
EPOCHS = 8


def until(condition: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path) -> None:
    """Look often; the driver must not have ended before."""
    deadline = time.monotonic() + 150
    while not condition():
        assert driver.poll() is None, f"it ended before a node could be killed: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder but notes of stores."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture
def clips(tmp_path: Path, save_tone) -> Path:
    """Many short recordings: every node sees them at this path."""
    lines = ["path,labels,split"]
    first = save_tone(tmp_path / "data" / "0.wav", seconds=2.0)
    for number in range(PARTS * CLIPS):
        split = "train" if number >= CLIPS else "test"
        (tmp_path / "data" / f"{number}.wav").write_bytes(first.read_bytes())
        lines.append(f"{number}.wav,{'high' if number % 2 else 'low'},{split}")
    (tmp_path / "data" / "3.wav").write_text("not audio")
    (tmp_path / "data" / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data" / "list.csv"


def upload_parquet(clips: Path, place: str) -> str:
    """Write the recordings of a list into a Parquet file in the object store; return its URI."""
    rows = [
        {"clip_id": row["path"], "audio": {"bytes": (clips.parent / row["path"]).read_bytes()}, **row}
        for row in csv.DictReader(clips.read_text().splitlines())
    ]
    filesystem, folder = open_filesystem(place, "--storage")
    table = pa.Table.from_pylist(rows).select(["clip_id", "audio", "labels", "split"])
    with filesystem.open_output_stream(f"{folder}-recordings.parquet") as file:
        pq.write_table(table, file, row_group_size=CLIPS)
    return f"{place}-recordings.parquet"


@pytest.mark.timeout(300)
def test_a_node_dies_while_preparing_and_no_clip_is_lost_or_twice(
    cluster: nodes.Nodes, place: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check recordings in a Parquet file of the object store, of which no node has a copy, next to loose files."""
    source = upload_parquet(clips, place)
    settings = PrepareSettings(
        run_dir=cluster.work / "prepare",
        shards=cluster.work / "prepare" / "shards",
        data=DataConfig(source=source, layout="parquet", train_splits=("train",), test_split="test"),
        prepare=PrepareConfig(clips_per_part=CLIPS),
        front_end=FrontEndConfig(target_frames=FRAMES, num_mel_bins=BINS),
    )
    flags = f"""
    --recipe esc50_small --run-dir {settings.run_dir} --storage {place} --data.source {source} --data.layout parquet
    --data.train-splits train --data.test-split test --prepare.clips-per-part {CLIPS}
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    """.split()
    with cluster.stage("prepare.log", IMPATIENT, *flags) as driver:
        disk = cluster.by_name["b"].disk / "prepare" / "shards"
        until(lambda: len(list(disk.glob("*/part-*.json"))) >= 3, driver, cluster.folder / "prepare.log")
        assert cluster.kill("b") > 2
        seen = ObjectStore(tmp_path / "seen", place)
        at_kill = sum(path.suffix == ".json" for path in seen.list_files(seen.root))
        assert 3 <= at_kill < PARTS, "it must die in the middle"
        said = cluster.ended(driver, "prepare.log")

    alone = dataclasses.replace(settings, run_dir=tmp_path / "alone", shards=tmp_path / "alone" / "shards")
    for part in plan(alone, load_manifest(source, "parquet"), source):
        write_shard_part(part)
    index = prepare(alone)
    loose = dataclasses.replace(settings, shards=tmp_path / "loose")
    for part in plan(loose, load_manifest(clips, "manifest"), clips):
        write_shard_part(part)
    assert {name: own for name, own in contents(loose.shards).items() if name.endswith(".parquet")} == {
        name: own for name, own in contents(alone.shards).items() if "part-" in name and name.endswith(".parquet")
    }
    assert sum(counts.kept for counts in index.splits.values()) == PARTS * CLIPS - 1
    mine = dataclasses.replace(settings, storage=place)  # this process is one more node, with nothing yet
    capsys.readouterr()
    prepare(mine)
    assert "nothing to do" in capsys.readouterr().out
    downloads.download_shards(mine.shards, ["train", "test"])
    assert contents(mine.shards) == contents(alone.shards)
    assert {path.relative_to(mine.shards).as_posix() for path in list_stored(mine.shards)} == set(
        contents(alone.shards)
    )
    assert f"{PARTS * CLIPS} clips in" in said


def _add_missing_nodes(cluster: nodes.Nodes) -> None:
    """Add nodes in the place of those that a test killed."""
    for name in ("c", "d"):
        if len(cluster.by_name) < 3:
            cluster.add(name)


def train_flags(cluster: nodes.Nodes, place: str, name: str) -> list[str]:
    return f"""
    --recipe esc50_small --run-dir {cluster.work / name} --storage {place}/{name}
    --workers 2 --tracking sqlite:///{cluster.work / "mlflow.db"}
    --data.train-splits train --data.test-split test
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    --model.patch-freq {BINS} --model.freq-stride {BINS} --augment.freq-mask-bins 4 --augment.time-mask-frames 8
    --optim.epochs {EPOCHS} --optim.batch-size 6 --optim.checkpoint-every-steps 3 --optim.average-first-epoch 2
    """.split()


@pytest.mark.long  # most of it waits for Ray to notice; lost workers and another node each have tests of their own
@pytest.mark.timeout(400)
def test_a_node_dies_while_training_and_the_weights_are_the_same_to_the_bit(
    cluster: nodes.Nodes, place: str, tmp_path: Path
) -> None:
    _add_missing_nodes(cluster)
    for name in ("whole", "killed"):
        own = ObjectStore(tmp_path / name, f"{place}/{name}")
        own.attach()
        write_shards(own.root / "shards", {"train": 42, "test": 21})
    cluster.run("whole.log", "train.py", *train_flags(cluster, place, "whole"))
    cluster.add("spare")
    history = Path("killed") / "members" / "seed-0" / "metrics.jsonl"
    with cluster.stage("killed.log", "train.py", *train_flags(cluster, place, "killed")) as driver:
        working = [name for name in cluster.by_name if name != "head"]

        def leader() -> str:
            paths = {name: cluster.by_name[name].disk / history for name in working}
            long = [n for n, path in paths.items() if path.is_file() and len(path.read_text().splitlines()) >= 2]
            return long[0] if long else ""

        until(lambda: bool(leader()), driver, cluster.folder / "killed.log")
        victim = leader()
        at_kill = len((cluster.by_name[victim].disk / history).read_text().splitlines())
        assert cluster.kill(victim) > 2
        said = cluster.ended(driver, "killed.log")
    restarts = said.count("Workers were lost")
    assert 2 <= at_kill < EPOCHS
    assert 1 <= restarts <= 3
    _check_alike(place, tmp_path)
    followed = (cluster.by_name["head"].disk / history).read_text().splitlines()  # no rank was there
    assert [json.loads(line)["epoch"] for line in followed] == list(range(1, EPOCHS + 1))


def _check_alike(place: str, tmp_path: Path) -> None:
    found = []
    for name in ("whole", "killed"):
        own = ObjectStore(tmp_path / "seen" / name, f"{place}/{name}")
        own.attach()
        downloads.download_files(own.root, ["members/*"])
        member = own.root / "members" / "seed-0"
        downloads.download_checkpoint(member / "checkpoints")
        weights = {p.relative_to(member).as_posix(): p.read_bytes() for p in sorted(member.rglob("*.safetensors"))}
        rows = [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]
        timed = ("seconds", "clips_per_s")
        found.append((weights, [{key: row[key] for key in row if key not in timed} for row in rows]))
    whole, killed = found
    assert len(whole[0]) >= EPOCHS + 2
    assert whole[0].keys() == killed[0].keys()
    assert [name for name in whole[0] if whole[0][name] != killed[0][name]] == []
    assert whole[1] == killed[1]


RECIPE = """
[data]
layout = "folders"
validation_split = "validation"
[prepare]
clips_per_part = 6
[front_end]
target_frames = 48
[model]
backbone = "ast_micro"
patch_freq = 128
patch_time = 8
freq_stride = 128
time_stride = 8
init = "scratch"
[augment]
freq_mask_bins = 8
time_mask_frames = 8
[optim]
epochs = 3
batch_size = 6
learning_rate = 1e-3
warmup_steps = 4
loss = "bce"
weights = "averaged"
average_first_epoch = 2
[ensemble]
seeds = [0, 1]
"""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_whole_job_with_an_object_store_and_a_tracking_server(
    cluster: nodes.Nodes, place: str, tmp_path: Path, save_tone
) -> None:
    _add_missing_nodes(cluster)
    for split, label, number in itertools.product(("train", "validation", "test"), ("deep", "high"), range(6)):
        pitch_hz = (200.0 if label == "deep" else 3200.0) + 9 * number
        save_tone(tmp_path / "clips" / split / label / f"{number}.wav", pitch_hz=pitch_hz, seed=number)
    (tmp_path / "mine.toml").write_text(RECIPE)
    with (
        servers.postgres(cluster.folder / "postgres.log") as database,
        servers.tracking_server(cluster.gateway, database, cluster.environment, cluster.folder / "mlflow.log") as uri,
    ):
        flags = f"--recipe {tmp_path / 'mine.toml'} --run-dir {cluster.work / 'run'} --storage {place} --tracking {uri}"
        source = ["--data.source", str(tmp_path / "clips")]
        said = cluster.run("run.log", "run.py", *flags.split(), *source, "--workers", "2", seconds=350)
        assert "models:/ast-mine@champion, ensemble of 2 members" in said

        clips = tuple(sorted((tmp_path / "clips" / "test").rglob("*.wav")))
        settings = PredictSettings(inputs=tuple(map(str, clips)), model="models:/ast-mine@champion", tracking=uri)
        scores = predict(settings).probabilities
        mine = parse_settings(
            ReportSettings, "", [*flags.split(), *source]
        )  # this process is one more node, with nothing yet
        page = report(mine).read_text()
        _check_databases(database, cluster.environment)
    summary = read_json(mine.run_dir / "evaluation" / "summary.json", "Summary")
    assert f"accuracy {summary['ensemble']['accuracy']:.3f}" in page
    predictor = Predictor(Bundle.load(mine.run_dir / "bundles" / "ensemble"))
    for path in clips:
        own_C = predictor.probabilities(load_waveform(path, 16_000))
        assert np.abs(scores[str(path)] - own_C).max() < 1e-6


def _check_databases(database: str, environment: Mapping[str, str]) -> None:
    """Check that the server's rows are in PostgreSQL and its files in the bucket."""
    with contextlib.closing(psycopg.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from metrics where key = 'train_loss'")
        assert cursor.fetchone() == (2 * 3,)  # an epoch of a member each
        cursor.execute("select count(*) from model_versions")
        assert cursor.fetchone() == (3,)
    with servers.s3(environment) as client:
        listed = client.list_objects_v2(Bucket=servers.BUCKET, Prefix="mlflow/")["Contents"]
    assert sum(entry["Key"].endswith("bundle.json") for entry in listed) == 3
