"""What training aims at: the labels, or a mixture of them with a teacher's probabilities (distillation).

Both losses are linear in their targets, so one pass over mixed targets is the weighted sum of the two losses of Hinton,
Vinyals, Dean, 2015 (at temperature 1, as PSLA-style ensembles of sigmoids have none).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ast_core.config import Job
from ast_core.errors import UserError, require
from ast_core.evaluation.stored_scores import identity_in, identity_of, read_scores
from ast_core.shards.reader import ShardReader


def teacher_identity(job: Job) -> dict[str, Any]:
    """Which teacher, and how much it counts; empty for none."""
    if job.teacher_scores is None:
        return {}
    require(job.teacher_scores.is_file(), f"There are no teacher's scores in {job.teacher_scores}.")
    return {
        "distil": {"weight": job.distil.weight, "teacher": identity_in(job.teacher_scores).get("bundle_digest", "")}
    }


def soft_targets(job: Job, train: ShardReader) -> np.ndarray:
    """Targets of the training clips, float32 [N, C], in [0, 1].

    Raises:
        UserError: the teacher's scores are of other clips.
    """
    if job.teacher_scores is None:
        return train.labels_NC
    digest = identity_in(job.teacher_scores).get("bundle_digest", "")
    scores_NC = read_scores(job.teacher_scores, identity_of(digest, train))
    if scores_NC is None:
        raise UserError(f"{job.teacher_scores} are scores of other clips than {job.shards} trains on.")
    weight = np.float32(job.distil.weight)
    targets_NC: np.ndarray = (1 - weight) * train.labels_NC + weight * scores_NC
    return targets_NC
