"""Identity of a training: the meaning of its weights, and every setting that decides the bits of its run.

Both are stored in each checkpoint. A resume, an average and a bundle compare them before they use the weights.
"""

from __future__ import annotations

from typing import Any

from ast_core.config import WAYS_IN, Job
from ast_core.errors import require
from ast_core.serialization import to_dict
from ast_core.shards.reader import ShardReader
from ast_core.training.targets import teacher_identity
from ast_core.weights.checkpoint import Checkpoint


def build_identity(job: Job, train: ShardReader, newest: Checkpoint | None) -> dict[str, Any]:
    """Return the identity of a training, as its checkpoints store it: `member` and `run`.

    Args:
        job: the training.
        train: its clips.
        newest: the checkpoint that the training continues from, if there is one.

    Raises:
        UserError: the shards were made with another front end than the job's.
    """
    mean, std = _choose_normalisation(job, train, newest)
    return {"member": _describe_member(job, train, mean, std), "run": _describe_run(job, train)}


def _choose_normalisation(job: Job, train: ShardReader, newest: Checkpoint | None) -> tuple[float, float]:
    """Return mean and standard deviation of the log-mel.

    They are the recipe's, or else those of the training splits at the time the run began: data that changed later must
    not change the meaning of the weights.
    """
    if job.data.mean is not None and job.data.std is not None:
        return job.data.mean, job.data.std
    if newest is not None:
        began = newest.state["identity"]["member"]
        return began["mean"], began["std"]
    return train.index.statistics(job.data.train_splits)


def _describe_member(job: Job, train: ShardReader, mean: float, std: float) -> dict[str, Any]:
    """Return the meaning of a model's weights: model, front end, labels, normalisation, loss."""
    own = to_dict(job.front_end)
    stored = train.index.front_end
    other = {key: (stored[key], value) for key, value in own.items() if key in stored and stored[key] != value}
    require(
        not other,
        f"The shards in {job.shards} were made with another front end: "
        + ", ".join(f"{key} {have}, not {want}" for key, (have, want) in other.items())
        + ". Prepare again into another folder, or use the recipe that they were made with.",
    )
    model = {key: value for key, value in to_dict(job.model).items() if key not in WAYS_IN}
    labels = list(train.index.labels)
    return {"model": model, "front_end": own, "labels": labels, "mean": mean, "std": std, "loss": job.optim.loss}


def _describe_run(job: Job, train: ShardReader) -> dict[str, Any]:
    """Return the other settings that decide the bits of a run; a resume needs them unchanged.

    The number of epochs is not among them: more epochs continue a run.
    """
    free = {"epochs", "checkpoint_every_steps", "weights", "average_first_epoch", "activation_checkpointing"}
    optim = {key: value for key, value in to_dict(job.optim).items() if key not in free}
    return {
        "augment": to_dict(job.augment),
        "data_hash": train.index.data_hash,
        "train_clips": len(train),
        "way_in": {key: getattr(job.model, key) for key in WAYS_IN},
        "optim": optim,
        "seed": job.seed,
        "train_splits": list(job.data.train_splits),
    } | teacher_identity(job)
