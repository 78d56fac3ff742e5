"""Training targets: the labels, or a mixture of the labels and a teacher's probabilities (distillation).

Both losses are linear in their targets, so one pass over mixed targets equals the weighted sum of the two losses of
Hinton, Vinyals and Dean (2015). The temperature is 1, because PSLA-style ensembles of sigmoids have no temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ast_core.config import Job
from ast_core.errors import UserError, require
from ast_core.evaluation.stored_scores import identity_in, identity_of, read_scores
from ast_core.shards.reader import ShardReader
from ast_core.shards.sparse_labels import SparseLabels, TargetRows


@dataclass(frozen=True)
class TeacherIdentity:
    """Weight and teacher of a distillation."""

    weight: float
    """Share of the teacher's probabilities in the targets."""
    teacher: str
    """Digest of the teacher's bundle."""


def teacher_identity(job: Job) -> TeacherIdentity | None:
    """Return the teacher's digest and weight for the run's identity; None without a teacher.

    Raises:
        UserError: the file of the teacher's scores is missing.
    """
    if job.teacher_scores is None:
        return None
    require(
        job.teacher_scores.is_file(),
        f"The teacher's scores are missing: {job.teacher_scores} does not exist. Run train again: it writes them.",
    )
    return TeacherIdentity(job.distil.weight, identity_in(job.teacher_scores).get("bundle_digest", ""))


@dataclass(frozen=True)
class MixedTargets:
    """Mixture of the labels and a teacher's probabilities, which is computed for one batch at a time."""

    labels: SparseLabels
    scores_NC: np.ndarray
    """Probabilities of the teacher, float32."""
    weight: np.float32
    """Share of the teacher's probabilities."""

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the targets of some clips in the given order, float32 [B, C], in [0, 1]."""
        targets_BC: np.ndarray = (1 - self.weight) * self.labels.rows(indices) + self.weight * self.scores_NC[indices]
        return targets_BC


def soft_targets(job: Job, train: ShardReader) -> TargetRows:
    """Return the targets of the training clips.

    Raises:
        UserError: the teacher's scores belong to other clips.
    """
    if job.teacher_scores is None:
        return train.labels
    digest = identity_in(job.teacher_scores).get("bundle_digest", "")
    scores_NC = read_scores(job.teacher_scores, identity_of(digest, train))
    if scores_NC is None:
        raise UserError(
            f"{job.teacher_scores} holds scores of other clips than the training clips in {job.shards}. "
            "Remove the file and run train again: it writes the scores anew."
        )
    return MixedTargets(train.labels, scores_NC, np.float32(job.distil.weight))
