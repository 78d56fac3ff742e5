"""Compute what a model costs before it is trained: patches, multiply-accumulates and parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ast_core.config import AugmentConfig, FrontEndConfig, ModelConfig
from ast_core.model.transformer import AST, BACKBONES, patch_grid


@dataclass(frozen=True)
class ModelCost:
    """Cost of one clip's forward pass."""

    patches: int
    """Number of patches that pass through the blocks."""
    macs: int
    """Multiply-accumulates of the linear layers and attention's two products. Each is two operations; a training step
    takes three times as many."""
    parameters: int
    """Number of the model's weights."""


def model_cost(
    model: ModelConfig, front_end: FrontEndConfig, classes: int, augment: AugmentConfig | None = None
) -> ModelCost:
    """Compute the cost of a clip of the front end's length; with `augment`, of a clip in training with its patchout.

    Raises:
        UserError: the input is smaller than one patch.
    """
    freq, time = patch_grid(model, front_end.num_mel_bins, front_end.target_frames)
    with torch.device("meta"):
        network = AST(model, front_end.num_mel_bins, front_end.target_frames, classes)
    size, embedded = BACKBONES[model.backbone], freq * time
    if augment:
        freq, time = freq - augment.patchout_freq, time - augment.patchout_time
    kept = freq * time - (augment.patchout_any if augment else 0)
    tokens, width = kept + network.prefix_tokens, size.embed_dim
    blocks = size.depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    macs = blocks + embedded * model.patch_freq * model.patch_time * width + width * classes
    return ModelCost(kept, macs, sum(parameter.numel() for parameter in network.parameters()))
