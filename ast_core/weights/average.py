"""The arithmetic mean of checkpoints' weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ast_core.errors import require
from ast_core.weights.checkpoint import read_state, read_tensors


def average_weights(folders: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Mean of every tensor of the named epochs, summed in float64.

    Args:
        folders: committed epoch folders of one model.

    Returns:
        Tensors in the checkpoints' own types.

    Raises:
        UserError: none were given, or they are not of the same model.
        DamagedError: one is damaged.
    """
    require(bool(folders), "There are no epochs to average. Train first, or lower optim.average-first-epoch.")
    configs = [read_state(folder)["identity"] for folder in folders]
    other = [str(folder) for folder, config in zip(folders, configs, strict=True) if config != configs[0]]
    require(not other, f"{', '.join(other)} is not of the same model as {folders[0]}: they cannot be averaged.")
    total: dict[str, torch.Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for folder in folders:
        for key, value in read_tensors(folder, "model").items():
            total[key] = total[key] + value.double() if key in total else value.double()
            kinds[key] = value.dtype
    return {key: (value / len(folders)).to(kinds[key]) for key, value in total.items()}
