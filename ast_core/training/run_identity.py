"""Identity of a training: the meaning of its weights, and every setting that decides the bits of its run.

Both are stored in each checkpoint. A resume, an average and a bundle compare them before they use the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ast_core.config import WAYS_IN, AugmentConfig, FrontEndConfig, Job, Loss
from ast_core.errors import require
from ast_core.serialization import to_dict, to_identity
from ast_core.shards.reader import ShardReader
from ast_core.training.targets import TeacherIdentity, teacher_identity
from ast_core.weights.checkpoint import Checkpoint

FREE_KEYS = frozenset(
    {
        "epochs",
        "early_stopping_epochs",
        "checkpoint_every_steps",
        "weights",
        "average_first_epoch",
        "activation_checkpointing",
    }
)
"""Keys of the `OptimConfig` that decide no bits of a step, and may change between the starts of a run."""


@dataclass(frozen=True)
class MemberIdentity:
    """Meaning of a model's weights."""

    model: dict[str, Any]
    """Values of the `ModelConfig`, without those that only say how the training began."""
    front_end: FrontEndConfig
    labels: tuple[str, ...]
    """Names of the classes, in index order."""
    mean: float
    """Mean of the training set's log-mel."""
    std: float
    """Standard deviation of the training set's log-mel."""
    loss: Loss


@dataclass(frozen=True)
class RunSettings:
    """Other settings that decide the bits of a run; a resume needs them unchanged.

    The number of epochs is not among them: more epochs continue a run. Neither is `early_stopping_epochs`, which only
    ends a run earlier.
    """

    augment: AugmentConfig
    data_hash: str
    """Hash of the shards' data."""
    train_clips: int
    """Number of training clips."""
    way_in: dict[str, Any]
    """Values of the `ModelConfig` that say how the training began."""
    optim: dict[str, Any]
    """Values of the `OptimConfig` that decide bits."""
    seed: int
    train_splits: tuple[str, ...]
    distil: TeacherIdentity | None
    """Teacher, if the training has one."""


@dataclass(frozen=True)
class RunIdentity:
    """Identity of a training, as its checkpoints store it."""

    member: MemberIdentity
    run: RunSettings

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the JSON values that a checkpoint stores; `run` has the key `distil` only with a teacher."""
        values = to_dict(self)
        if self.run.distil is None:
            del values["run"]["distil"]
        return values


def build_identity(job: Job, train: ShardReader, newest: Checkpoint | None) -> RunIdentity:
    """Return the identity of a training.

    Args:
        job: the training.
        train: its clips.
        newest: the checkpoint that the training continues from, if there is one.

    Raises:
        UserError: the shards were made with another front end than the job's.
    """
    mean, std = _choose_normalisation(job, train, newest)
    return RunIdentity(_describe_member(job, train, mean, std), _describe_run(job, train))


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


def _describe_member(job: Job, train: ShardReader, mean: float, std: float) -> MemberIdentity:
    """Return the meaning of a model's weights: model, front end, labels, normalisation, loss."""
    own, stored = to_dict(job.front_end), train.index.front_end
    other = {key: (stored[key], value) for key, value in own.items() if key in stored and stored[key] != value}
    require(
        not other,
        f"The shards in {job.shards} were made with another front end: "
        + ", ".join(f"{key} {have}, not {want}" for key, (have, want) in other.items())
        + ". Prepare again into another folder, or use the recipe that they were made with.",
    )
    model = {key: value for key, value in to_identity(job.model).items() if key not in WAYS_IN}
    return MemberIdentity(model, job.front_end, train.index.labels, mean, std, job.optim.loss)


def _describe_run(job: Job, train: ShardReader) -> RunSettings:
    optim = {key: value for key, value in to_identity(job.optim).items() if key not in FREE_KEYS}
    return RunSettings(
        augment=job.augment,
        data_hash=train.index.data_hash,
        train_clips=len(train),
        way_in={key: value for key, value in to_identity(job.model).items() if key in WAYS_IN},
        optim=optim,
        seed=job.seed,
        train_splits=job.data.train_splits,
        distil=teacher_identity(job),
    )
