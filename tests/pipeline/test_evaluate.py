"""Evaluation over Ray scores each clip once, with the same scores as one process, and never again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from conftest import NewStore

from ast_core.config import DataConfig, FrontEndConfig, ModelConfig
from ast_core.errors import UserError
from ast_core.evaluation.metrics import evaluate_scores
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.shards.reader import ShardReader
from ast_core.shards.writer import Row, write_part
from ast_core.storage.json_files import write_hashed_json
from ast_core.weights.bundle import Bundle, write_bundle
from pipeline.cli.stages import EvaluateSettings
from pipeline.evaluate import evaluate
from pipeline.tracking.run_note import NOTE

CLIPS, FRAMES, BINS, LABELS = 77, 32, 16, ["a", "b", "c"]


def write_shards(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        Row(f"clip-{n}", (n % 3,), FRAMES, rng.normal(size=(FRAMES, BINS)).astype(np.float16)) for n in range(CLIPS)
    ]
    written = to_dict(write_part(folder / "test" / "part-00000.parquet", rows, {}, FRAMES, BINS))
    parts = [{"name": "part-00000.parquet", **written}]
    split = {"listed": CLIPS + 2, "kept": CLIPS, "rejected": 1, "missing": 1, "parts": parts}
    split |= {key: written[key] for key in ("sum", "sum_sq", "count")}
    front_end = to_dict(FrontEndConfig(target_frames=FRAMES, num_mel_bins=BINS))
    index = {"front_end": front_end, "labels": LABELS, "single_label": True, "layout": "folders", "data_hash": "d"}
    write_hashed_json(folder / "index.json", {**index, "splits": {"test": split}})


def write_member(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
    front_end = to_dict(FrontEndConfig(target_frames=FRAMES, num_mel_bins=BINS))
    identity = {"model": to_dict(config), "front_end": front_end, "labels": LABELS, "mean": 0.0, "std": 0.5}
    weights = AST(config, BINS, FRAMES, len(LABELS)).state_dict()
    write_bundle(folder, [(folder.name, weights, {**identity, "loss": "cross_entropy"})], True)


@pytest.fixture
def settings(tmp_path: Path, new_store: NewStore) -> EvaluateSettings:
    write_shards(tmp_path / "shards")
    write_member(tmp_path / "bundles" / "seed-0", 0)
    history = tmp_path / "members" / "seed-0" / "metrics.jsonl"
    history.parent.mkdir(parents=True)
    history.write_text("".join(json.dumps({"epoch": e, "train_loss": 1 / e, "test_mAP": 0.1}) + "\n" for e in (1, 2)))
    return EvaluateSettings(
        run_dir=tmp_path, shards=tmp_path / "shards", workers=2, tracking=new_store(tmp_path),
        experiment="test", data=DataConfig(),
    )  # fmt: skip


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_session")
def test_scores_equal_those_of_one_process_and_are_kept(settings: EvaluateSettings) -> None:
    summary = evaluate(settings)
    reader = ShardReader(settings.shards, ["test"])
    bundle = Bundle.load(settings.run_dir / "bundles" / "seed-0")
    own_NC = Predictor(bundle).from_fbank(reader.read(np.arange(CLIPS)), reader.num_frames_N)
    output = settings.run_dir / "evaluation"
    table = pyarrow.parquet.read_table(output / "seed-0-scores.parquet")
    assert table["clip_id"].to_pylist() == reader.clip_ids
    assert np.abs(np.array(table["scores"].to_pylist()) - own_NC).max() < 1e-6
    assert table["labels"].to_pylist() == [[n % 3] for n in range(CLIPS)]
    assert summary["seed-0"] == pytest.approx(evaluate_scores(own_NC, reader.labels_NC, True), abs=1e-6)
    result = json.loads((output / "seed-0.json").read_text())
    assert (result["clips_listed"], result["clips_evaluated"], result["per_class"]["a"]["positives"]) == (79, 77, 26)
    for name in ("per_class_ap.png", "learning_curves.png"):
        assert (output / name).read_bytes()[:4] == b"\x89PNG"
    before = (output / "seed-0-scores.parquet").stat().st_mtime_ns
    (output / ".seed-0.json.killed").touch()  # a writer that was killed
    assert evaluate(settings) == summary
    assert (output / "seed-0-scores.parquet").stat().st_mtime_ns == before
    assert {path.name for path in output.glob(".*")} == {NOTE}


@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_intervals_and_a_clip_list_use_the_stored_scores(settings: EvaluateSettings, tmp_path: Path) -> None:
    evaluate(settings)
    output = settings.run_dir / "evaluation"
    scored = (output / "seed-0-scores.parquet").stat().st_mtime_ns
    listed = tmp_path / "half.txt"
    listed.write_text("".join(f"clip-{n}\n" for n in range(0, 90, 2)))
    summary = evaluate(dataclasses.replace(settings, bootstrap=50, clip_list=listed))
    assert (output / "seed-0-scores.parquet").stat().st_mtime_ns == scored
    result = json.loads((output / "half" / "seed-0.json").read_text())
    assert (result["clips_evaluated"], result["clips_listed"]) == (39, 45)
    assert summary["seed-0"]["accuracy"] == result["metrics"]["accuracy"]
    low, high = result["intervals"]["accuracy"]
    assert low <= result["metrics"]["accuracy"] <= high
    table = pyarrow.csv.read_csv(output / "half" / "seed-0-per-class.csv").to_pydict()
    assert table["label"] == LABELS
    assert sum(table["positives"]) == 39
    assert (
        json.loads((output / "seed-0.json").read_text())["clips_evaluated"] == CLIPS
    )  # the result of the complete test stays
    listed.write_text("nothing-here\n")
    with pytest.raises(UserError, match=r"has none of the 1 clips of .*the split such as clip-0"):
        evaluate(dataclasses.replace(settings, clip_list=listed))


def test_a_run_without_bundles_is_refused(settings: EvaluateSettings) -> None:
    for path in (settings.run_dir / "bundles" / "seed-0").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="run combine first"):
        evaluate(settings)
