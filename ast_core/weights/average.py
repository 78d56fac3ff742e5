"""Arithmetic mean of the weights of several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ast_core.errors import require
from ast_core.weights.checkpoint import read_state, read_tensors


def average_weights(folders: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of every tensor over the given epochs, summed in float64.

    Args:
        folders: committed epoch folders of one model.

    Returns:
        Tensors in the types that the checkpoints have.

    Raises:
        UserError: no folder was given, or the epochs belong to different models.
        DamagedError: an epoch is damaged.
    """
    require(bool(folders), "No epoch was found to average. Train first, or lower optim.average-first-epoch.")
    configs = [read_state(folder)["identity"] for folder in folders]
    other = [str(folder) for folder, config in zip(folders, configs, strict=True) if config != configs[0]]
    require(
        not other,
        f"These epochs cannot be averaged: {', '.join(other)} and {folders[0]} have different models, labels or "
        "settings. Train the member again in an empty folder.",
    )
    total: dict[str, torch.Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for folder in folders:
        for key, value in read_tensors(folder, "model").items():
            total[key] = total[key] + value.double() if key in total else value.double()
            kinds[key] = value.dtype
    return {key: (value / len(folders)).to(kinds[key]) for key, value in total.items()}
