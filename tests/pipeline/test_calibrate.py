"""Thresholds from the validation split: stored in the bundle, used by predict, dropped with the weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from prepared import BINS, FRAMES, LABELS, write_shards

from ast_core.errors import UserError
from ast_core.shards.reader import ShardReader
from ast_core.weights.bundle import Bundle, read_members, write_bundle
from pipeline.calibrate import calibrate
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import CalibrateSettings, CombineSettings, PredictSettings, TrainSettings
from pipeline.combine import combine
from pipeline.predict import predict
from pipeline.train import train


def flags(folder: Path) -> list[str]:
    return f"""
    --recipe audioset_small --run-dir {folder / "run"} --shards {folder / "shards"} --workers 1
    --tracking sqlite:///{folder / "mlflow.db"} --experiment test --ensemble.seeds 0
    --data.train-splits train --data.test-split test --data.validation-split validation
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    --model.patch-freq {BINS} --model.freq-stride {BINS} --augment.freq-mask-bins 4 --augment.time-mask-frames 8
    --optim.epochs 3 --optim.batch-size 6 --optim.average-first-epoch 3 --optim.warmup-steps 4
    """.split()


def parsed(kind, folder: Path):
    known = {name for name in ("data", "front_end", "model", "augment", "optim", "ensemble") if hasattr(kind(), name)}
    rows, own = flags(folder), []
    for place, flag in enumerate(rows):
        section = flag.removeprefix("--").partition(".")[0].replace("-", "_")
        if flag.startswith("--") and ("." not in flag or section in known):
            own += rows[place : place + 2]
    return parse_settings(kind, "", own)


@pytest.fixture
def folder(tmp_path: Path, new_store) -> Path:
    new_store(tmp_path)
    write_shards(tmp_path / "shards", {"train": 42, "validation": 36, "test": 24}, single_label=False)
    return tmp_path


@pytest.mark.slow
def test_thresholds_are_fitted_stored_and_used(folder: Path, without_ray, save_tone) -> None:
    train(parsed(TrainSettings, folder))
    combine(parsed(CombineSettings, folder))
    settings = parsed(CalibrateSettings, folder)
    decisions = calibrate(settings)
    assert sorted(decisions) == ["seed-0", "seed-0-last"]
    bundle_dir = folder / "run" / "bundles" / "seed-0"
    bundle = Bundle.load(bundle_dir)
    assert bundle.decisions == decisions["seed-0"]
    assert bundle.decisions.fitted_on == {"data_hash": "d", "split": "validation"}
    summary = json.loads((folder / "run" / "calibration" / "summary.json").read_text())
    assert summary["seed-0"]["calibration_error_fitted"] < summary["seed-0"]["calibration_error"]
    assert summary["seed-0"]["macro_f1_fitted"] > 0.8
    before = bundle.digest
    (leftover := folder / "run" / "calibration" / ".summary.json.killed").touch()  # a writer that was killed
    assert calibrate(settings) == decisions
    assert not leftover.exists()

    _check_predict(folder, bundle_dir, bundle, save_tone)
    _check_forgotten(bundle_dir, before)


def _check_predict(folder: Path, bundle_dir: Path, bundle: Bundle, save_tone) -> None:
    """Check that predict decides labels as the bundle's decisions do, with calibrated probabilities."""
    path = save_tone(folder / "audio" / "a.wav")
    plain = predict(PredictSettings(inputs=(str(path),), model=str(bundle_dir))).probabilities[str(path)]
    output = folder / "out.csv"
    found = predict(
        PredictSettings(inputs=(str(path),), model=str(bundle_dir), decide=True, output=str(output))
    ).probabilities[str(path)]
    assert bundle.decisions is not None
    np.testing.assert_array_equal(found, bundle.decisions.calibrated(plain[None])[0])
    with output.open() as file:
        row = next(csv.DictReader(file))
    own = {label for label, has in zip(LABELS, bundle.decisions.decide(plain[None])[0], strict=True) if has}
    assert set(json.loads(row["labels"])) == own
    assert [float(row[f"p:{label}"]) for label in LABELS] == pytest.approx(found.tolist(), abs=1e-6)


def _check_forgotten(bundle_dir: Path, digest: str) -> None:
    """Check that the same weights keep their thresholds and other weights lose them."""
    members = read_members(bundle_dir)
    assert write_bundle(bundle_dir, members, False) == digest
    assert Bundle.load(bundle_dir).decisions is not None
    name, weights, identity = members[0]
    write_bundle(bundle_dir, [(name, {key: value + 1 for key, value in weights.items()}, identity)], False)
    assert Bundle.load(bundle_dir).decisions is None
    with pytest.raises(UserError, match="run calibrate"):
        predict(PredictSettings(inputs=(str(bundle_dir.parents[2] / "audio"),), model=str(bundle_dir), decide=True))


def test_without_a_validation_split_calibrate_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no data\.validation-split"):
        calibrate(CalibrateSettings(run_dir=folder / "run", shards=folder / "shards"))
    assert len(ShardReader(folder / "shards", ["validation"])) == 36
