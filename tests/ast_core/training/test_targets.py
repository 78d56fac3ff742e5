"""Teacher's probabilities as targets: mixed by the weight, checked against the clips, part of the run's identity."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import FRONT_END, write_shards

from ast_core.config import AugmentConfig, DataConfig, DistilConfig, Job, ModelConfig, OptimConfig
from ast_core.errors import DamagedError, UserError
from ast_core.evaluation.stored_scores import identity_of, read_scores, write_scores
from ast_core.model.loss import training_loss
from ast_core.shards.reader import ShardReader
from ast_core.training.targets import soft_targets
from ast_core.training.trainer import fit

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    model = ModelConfig(
        backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch"
    )
    optim = OptimConfig(epochs=1, batch_size=6, learning_rate=1e-3, warmup_steps=3, sampler="shuffle", weights="last")
    return Job(
        folder=tmp_path / "member", shards=tmp_path / "shards", seed=0, data=DataConfig(), front_end=FRONT_END,
        model=model, augment=AugmentConfig(freq_mask_bins=4, time_mask_frames=8), optim=optim,
        distil=DistilConfig("teacher", 0.25), teacher_scores=tmp_path / "teacher.parquet",
    )  # fmt: skip


def read_train_split(job: Job) -> ShardReader:
    return ShardReader(job.shards, job.data.train_splits)


def write_teacher_scores(job: Job, scores_NC: np.ndarray, digest: str = "t") -> None:
    train = read_train_split(job)
    assert job.teacher_scores
    write_scores(job.teacher_scores, identity_of(digest, train), scores_NC, train)


def test_targets_are_the_weighted_sum(job: Job) -> None:
    scores_NC = np.random.default_rng(0).random((42, 3)).astype(np.float32)
    write_teacher_scores(job, scores_NC)
    train = read_train_split(job)
    targets_NC = soft_targets(job, train).rows(np.arange(42))
    np.testing.assert_array_equal(targets_NC, np.float32(0.75) * train.labels_NC + np.float32(0.25) * scores_NC)
    plain = dataclasses.replace(job, teacher_scores=None)
    assert soft_targets(plain, train) is train.labels


@pytest.mark.parametrize("kind", ["bce", "cross_entropy"])
def test_loss_on_mixed_targets_equals_the_mixture_of_two_losses(kind) -> None:
    torch.manual_seed(0)
    logits, hard, soft = torch.randn(5, 3), torch.eye(3)[[0, 1, 2, 1, 0]], torch.softmax(torch.randn(5, 3), 1)
    both = 0.75 * training_loss(kind, logits, hard) + 0.25 * training_loss(kind, logits, soft)
    torch.testing.assert_close(training_loss(kind, logits, 0.75 * hard + 0.25 * soft), both)


def test_student_with_teacher_weight_one_ignores_the_labels(job: Job) -> None:
    """Train with weight 1 on a teacher that shifts the classes: the student must predict the teacher's classes."""
    train = read_train_split(job)
    write_teacher_scores(job, np.roll(train.labels_NC, 1, axis=1))
    optim = dataclasses.replace(job.optim, epochs=3, loss="cross_entropy")
    fit(dataclasses.replace(job, distil=DistilConfig("teacher", 1.0), optim=optim), 0, 1, CPU)
    row = json.loads((job.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_accuracy"] < 0.1  # a third by chance


def test_another_teacher_or_weight_is_refused_as_another_run(job: Job) -> None:
    write_teacher_scores(job, np.zeros((42, 3), np.float32))
    fit(job, 0, 1, CPU)
    with pytest.raises(UserError, match=r"run\.distil"):
        fit(dataclasses.replace(job, distil=DistilConfig("teacher", 0.5)), 0, 1, CPU)
    with pytest.raises(UserError, match=r"run\.distil"):
        fit(dataclasses.replace(job, teacher_scores=None), 0, 1, CPU)
    write_teacher_scores(job, np.zeros((42, 3), np.float32), "another")
    with pytest.raises(UserError, match="teacher"):
        fit(job, 0, 1, CPU)


def test_scores_of_other_clips_are_refused(job: Job) -> None:
    other = ShardReader(job.shards, ["test"])
    assert job.teacher_scores
    write_scores(job.teacher_scores, identity_of("t", other), np.zeros((21, 3), np.float32), other)
    with pytest.raises(UserError, match="other clips"):
        soft_targets(job, read_train_split(job))


def test_stored_scores_are_read_bitwise_and_damage_is_reported(job: Job, tmp_path: Path) -> None:
    train, path = read_train_split(job), tmp_path / "scores.parquet"
    scores_NC = np.random.default_rng(1).random((42, 3)).astype(np.float32)
    identity = identity_of("b", train)
    assert read_scores(path, identity) is None
    write_scores(path, identity, scores_NC, train)
    np.testing.assert_array_equal(read_scores(path, identity), scores_NC)
    assert read_scores(path, identity_of("c", train)) is None
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=r"scores\.parquet is damaged"):
        read_scores(path, identity)
