"""What a member's weights mean, and what else decides the bits of its run: compared before anything goes on from it."""

from __future__ import annotations

from typing import Any

from ast_core.config import WAYS_IN, Job
from ast_core.errors import require
from ast_core.serialization import to_dict
from ast_core.shards.reader import ShardReader
from ast_core.storage.json_files import read_hashed_json
from ast_core.training.targets import teacher_identity
from ast_core.weights import checkpoint


def normalisation(job: Job, train: ShardReader) -> tuple[float, float]:
    """Mean and standard deviation: the recipe's, or the training splits' own as they were when the run began."""
    if job.data.mean is not None and job.data.std is not None:
        return job.data.mean, job.data.std
    newest, _ = checkpoint.newest(job.folder / "checkpoints")
    if newest is not None:
        began = read_hashed_json(newest / checkpoint.MARKER, "Checkpoint's marker")["state"]["identity"]["member"]
        return began["mean"], began["std"]
    return train.index.statistics(job.data.train_splits)


def member_identity(job: Job, train: ShardReader, mean: float, std: float) -> dict[str, Any]:
    """What a model's weights mean: stored with each checkpoint, compared before averaging and in bundles."""
    own = to_dict(job.front_end)
    stored = train.index.front_end
    other = {key: (stored[key], value) for key, value in own.items() if key in stored and stored[key] != value}
    require(
        not other,
        f"The shards in {job.shards} were made with another front end: "
        + ", ".join(f"{key} {have}, not {want}" for key, (have, want) in other.items())
        + ". Prepare again into another folder, or take the recipe they were made with.",
    )
    model = {key: value for key, value in to_dict(job.model).items() if key not in WAYS_IN}
    labels = list(train.index.labels)
    return {"model": model, "front_end": own, "labels": labels, "mean": mean, "std": std, "loss": job.optim.loss}


def run_identity(job: Job, train: ShardReader) -> dict[str, Any]:
    """What else decides the bits of a run; a resume needs it unchanged. More epochs only continue a run."""
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
