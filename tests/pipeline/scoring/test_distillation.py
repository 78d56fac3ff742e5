"""Distillation from a teacher's bundle to the comparison with a smaller student."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import BINS, FRAMES, LABELS, write_shards

from ast_core.config import DistilConfig
from ast_core.errors import UserError
from ast_core.evaluation.stored_scores import identity_of, read_scores
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.shards.reader import ShardReader
from ast_core.weights.bundle import Bundle, read_members, write_bundle
from pipeline.cli.command_line import parse_settings, select_settings
from pipeline.cli.stages import CombineSettings, EvaluateSettings, RunSettings, TrainSettings
from pipeline.combine import combine
from pipeline.evaluate import evaluate
from pipeline.train import train


def make_settings(folder: Path, run: str, *more: str) -> RunSettings:
    flags = f"""
    --recipe esc50_small --run-dir {folder / run} --shards {folder / "shards"} --workers 1 --ensemble.seeds 0 1
    --tracking sqlite:///{folder / "mlflow.db"} --experiment test --data.train-splits train --data.test-split test
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    --model.patch-freq {BINS} --model.freq-stride {BINS} --augment.freq-mask-bins 4 --augment.time-mask-frames 8
    --optim.epochs 2 --optim.batch-size 6 --optim.average-first-epoch 1 --optim.warmup-steps 4
    """
    return parse_settings(RunSettings, "", [*flags.split(), *more])


def train_and_evaluate(settings: RunSettings) -> dict[str, dict[str, float]]:
    for seed in settings.ensemble.seeds:
        train(dataclasses.replace(select_settings(settings, TrainSettings), seed=seed))
    combine(select_settings(settings, CombineSettings))
    return evaluate(select_settings(settings, EvaluateSettings))


def write_teacher(settings: RunSettings) -> dict[str, dict[str, float]]:
    """Write an ensemble and its members with random weights, and evaluate them."""
    identity = {"model": to_dict(settings.model), "front_end": to_dict(settings.front_end), "labels": list(LABELS)}
    identity |= {"loss": "bce", "mean": -6.0, "std": 4.0}
    parts = []
    for seed in settings.ensemble.seeds:
        torch.manual_seed(seed)
        model = AST(settings.model, BINS, FRAMES, len(LABELS))
        parts.append((f"seed-{seed}", model.state_dict(), identity))
    for name, members in {"ensemble": parts, **{part[0]: [part] for part in parts}}.items():
        write_bundle(settings.run_dir / "bundles" / name, members, True)
    return evaluate(select_settings(settings, EvaluateSettings))


@pytest.fixture
def folder(tmp_path: Path, new_store) -> Path:
    new_store(tmp_path)
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    return tmp_path


@pytest.mark.slow
def test_a_smaller_student_is_compared_with_its_teacher(folder: Path, without_ray, capsys) -> None:
    teacher_results = write_teacher(make_settings(folder, "teacher"))
    teacher = folder / "teacher" / "bundles" / "ensemble"
    student = make_settings(
        folder, "student", "--distil.teacher", str(teacher), "--ensemble.seeds", "5", "--model.time-stride", "16",
    )  # fmt: skip
    own = train_and_evaluate(student)
    assert "distilled from ensemble" in capsys.readouterr().out

    reader = ShardReader(folder / "shards", ["train"])
    stored = folder / "student" / "teacher" / "teacher-scores.parquet"
    scores_NC = read_scores(stored, identity_of(Bundle.load(teacher).digest, reader))
    assert scores_NC is not None
    assert np.isfinite(scores_NC).all()
    rows = json.loads((folder / "student" / "evaluation" / "distillation.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher's seed-0", "teacher's seed-1", "teacher", "student seed-5"]
    assert rows[2]["score"] == pytest.approx(teacher_results["ensemble"]["accuracy"])
    assert rows[3]["score"] == own["seed-5"]["accuracy"]
    assert rows[3]["macs"] * 3 < rows[2]["macs"]

    written = stored.stat().st_mtime_ns
    train_and_evaluate(student)  # nothing is trained or scored again
    assert stored.stat().st_mtime_ns == written


def test_a_missing_teacher_and_one_with_other_labels_are_refused(folder: Path, trained_bundle: Path) -> None:
    with pytest.raises(UserError, match=r"distil\.teacher is .* does not exist"):
        make_settings(folder, "student", "--distil.teacher", "nowhere")
    write_shards(folder / "shards", {"train": 42, "test": 21})  # the fixture of the bundle wrote its own shards
    name, weights, identity = read_members(trained_bundle)[0]
    other = folder / "other"
    write_bundle(other, [(name, weights, {**identity, "labels": ["low", "high", "middle"]})], True)
    student = select_settings(make_settings(folder, "student"), TrainSettings)
    with pytest.raises(UserError, match=r"label 1: 'high', not 'middle'"):
        train(dataclasses.replace(student, distil=DistilConfig(str(other))))
