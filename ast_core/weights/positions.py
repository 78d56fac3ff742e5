"""Adaptation of positional embeddings to another grid of patches."""

from __future__ import annotations

import torch
from torch.nn import functional

from ast_core.config import Positions


def adapt_positions(
    pos_embed: torch.Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    prefix_tokens: int,
    mode: Positions = "bilinear",
) -> torch.Tensor:
    """Adapt a positional embedding to another grid, first in time, then in frequency.

    Along each axis a smaller target takes the centre of the source; a larger target interpolates it.

    Args:
        pos_embed: [1, prefix + source patches, E].
        source: patches in frequency and time of the grid that `pos_embed` was trained on.
        target: patches in frequency and time of the new grid.
        prefix_tokens: number of tokens before the patches; their positions are copied.
        mode: `bilinear` (without aligned corners) or `nearest`.

    Returns:
        [1, prefix + target patches, E].
    """
    prefix, patches = pos_embed[:, :prefix_tokens], pos_embed[:, prefix_tokens:]
    grid_1EFT = patches.reshape(1, *source, -1).permute(0, 3, 1, 2)
    grid_1EFT = _fit(grid_1EFT, 3, target[1], mode)
    grid_1EFT = _fit(grid_1EFT, 2, target[0], mode)
    return torch.cat([prefix, grid_1EFT.flatten(2).transpose(1, 2)], dim=1)


def _fit(grid_1EFT: torch.Tensor, axis: int, size: int, mode: Positions) -> torch.Tensor:
    """Cut or stretch one axis (2 frequency, 3 time) to `size`."""
    have = grid_1EFT.shape[axis]
    if size <= have:
        return grid_1EFT.narrow(axis, have // 2 - size // 2, size)
    shape = (grid_1EFT.shape[2], size) if axis == 3 else (size, grid_1EFT.shape[3])
    if mode == "nearest":
        return functional.interpolate(grid_1EFT, shape, mode="nearest")
    return functional.interpolate(grid_1EFT, shape, mode="bilinear", align_corners=False)
