"""Published checkpoints of AST as bundles. They hold weights only; the rest is what the published code trained with.

The checkpoints are listed in https://github.com/YuanGongND/ast. The number of classes says which data set a checkpoint
was trained on, and its positions say with which strides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ast_core.config import AUDIOSET_MEAN, AUDIOSET_STD, FrontEndConfig, Loss, ModelConfig
from ast_core.dataset.loose.csv_rows import csv_rows
from ast_core.dataset.problems import Problems
from ast_core.errors import UserError, require
from ast_core.model.transformer import BACKBONES, patch_grid
from ast_core.serialization import to_dict, to_identity
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import sha256_of_json
from ast_core.weights.bundle import Bundle, bundle_of_one
from ast_core.weights.bundle_description import BundleFacts, Entry, require_labels
from ast_core.weights.pretrained import PUBLISHED_BINS, read_published

PATCH = 16
"""Height and width of a patch of every published AST."""
STRIDES = (10, 12, 14, 16)
"""Distances between patches, in both directions, of the published checkpoints."""
_MODEL_FILE = "model.pth"


@dataclass(frozen=True)
class Training:
    """Settings of a published training, which its checkpoint does not hold."""

    data_set: str
    """Name of the data set."""
    target_frames: int
    """Number of frames of a clip."""
    mean: float
    """Mean of the training set's log-mel."""
    std: float
    """Standard deviation of the training set's log-mel."""
    loss: Loss
    """Training loss; it decides how logits become probabilities."""
    single_label: bool
    """Whether a clip has exactly one label."""


TRAININGS = {
    527: Training("AudioSet", 1024, AUDIOSET_MEAN, AUDIOSET_STD, "bce", single_label=False),
    50: Training("ESC-50", 512, -6.6268077, 5.358466, "cross_entropy", single_label=True),
    35: Training("Speech Commands V2", 128, -6.845978, 5.5654526, "bce", single_label=True),
}
"""Trainings of the published code by their number of classes; the values are those of its run scripts."""


def load_published(path: Path, labels: Sequence[str] | str | os.PathLike[str] | None = None) -> Bundle:
    """Load a published checkpoint as a bundle of one member.

    Args:
        path: `.pth` file, which is untrusted input.
        labels: names of the classes, or a CSV file with the columns `index` and `display_name`; None names the classes
            by their numbers.

    Raises:
        UserError: the file is no checkpoint of the published code, has no head, or was trained on other data than
            `TRAININGS` has; or the labels do not fit.
    """
    source = read_published(path)
    classes = _count_classes(source.weights, path)
    known = ", ".join(f"{count} ({own.data_set})" for count, own in TRAININGS.items())
    require(
        classes in TRAININGS,
        f"{path} has {classes} classes. Published checkpoints have {known}; a file of other classes does not say its "
        "length, mean and std. Start a training from it with --model.init, and load the bundle.",
    )
    training = TRAININGS[classes]
    names = tuple(map(str, range(classes))) if labels is None else _read_labels(labels, classes)
    front_end = FrontEndConfig(num_mel_bins=PUBLISHED_BINS, target_frames=training.target_frames)
    model = _find_config(source.weights, source.grid, front_end, path)
    sha256 = sha256_of(path)
    settings = (to_identity(model), to_dict(front_end), training.mean, training.std, training.loss)
    entry = Entry(path.stem, _MODEL_FILE, sha256, *settings)
    digest = sha256_of_json([*settings, names, sha256])
    facts = BundleFacts(made_of=f"published checkpoint, {path.name}")
    return bundle_of_one(entry, source.weights, names, training.single_label, digest, facts)


def _count_classes(weights: Mapping[str, torch.Tensor], path: Path) -> int:
    """Return the number of rows of the head."""
    head = weights.get("head.weight")
    if head is None or head.ndim != 2:
        raise UserError(
            f"{path} has no head, so it cannot predict: it may be a pre-training. Start a training from it with "
            "--model.init, and load the bundle."
        )
    return len(head)


def _find_config(
    weights: Mapping[str, torch.Tensor], grid: tuple[int, int], front_end: FrontEndConfig, path: Path
) -> ModelConfig:
    """Return the configuration that has the sizes of the weights and their grid of patches."""
    patch = weights.get("patch_proj.weight")
    require(
        patch is not None and patch.shape[1:] == (1, PATCH, PATCH),
        f"{path} was refused: it has no patches of {PATCH} x {PATCH}, as every published AST has. Give its bundle, or "
        "start a training from it with --model.init.",
    )
    depth = len({match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))})
    size = (weights["pos_embed"].shape[2], depth, "dist_token" in weights)
    fitting = [name for name, own in BACKBONES.items() if (own.embed_dim, own.depth, own.distilled) == size]
    require(
        bool(fitting),
        f"{path} was refused: no backbone here has its width of {size[0]} and depth of {size[1]} "
        f"{'with' if size[2] else 'without'} a distillation token. Choose a published checkpoint of AST.",
    )
    # Where two names have the same layers, either one is right.
    configs = [
        ModelConfig(backbone=fitting[-1], freq_stride=stride, time_stride=stride, init="scratch") for stride in STRIDES
    ]
    for config in configs:
        if patch_grid(config, front_end.num_mel_bins, front_end.target_frames) == grid:
            return config
    raise UserError(
        f"{path} was refused: it has {grid[0]} x {grid[1]} patches, and a published checkpoint of its data set has "
        f"{front_end.target_frames} frames at a stride of {', '.join(map(str, STRIDES))}. Start a training from it "
        "with --model.init, and load the bundle."
    )


def _read_labels(labels: Sequence[str] | str | os.PathLike[str], classes: int) -> tuple[str, ...]:
    """Return the given names of the classes, or those of a CSV file, after checking that each class has one."""
    if isinstance(labels, str | os.PathLike):
        names, where = _read_names(Path(labels)), str(labels)
    else:
        names, where = list(labels), "`labels`"
    try:
        require_labels(names)
    except UserError as error:
        raise UserError(f"{where} cannot name the classes: {error}") from None
    require(len(names) == classes, f"{where} has {len(names)} names for {classes} classes; give one for each class.")
    return tuple(names)


def _read_names(path: Path) -> list[str]:
    """Read the names of a CSV file in the order of their column `index`, which must count 0, 1, 2 and so on."""
    problems = Problems()
    names: dict[str, str] = {}
    for number, row in csv_rows(path, ("index", "display_name"), problems):
        if row["index"] in names:
            problems.add(path, number, f"the index {row['index'][:20]!a} is listed twice")
        names[row["index"]] = row["display_name"]
    problems.check()
    missing = [index for index in map(str, range(len(names))) if index not in names]
    require(not missing, f"{path} has no index {missing[:1]!a}; number the classes from 0 to {len(names) - 1}.")
    return [names[str(index)] for index in range(len(names))]
