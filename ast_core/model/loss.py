"""Compute the two losses of AST from logits and labels, which mixup may have mixed."""

from __future__ import annotations

import torch
from torch.nn import functional

from ast_core.config import Loss


def training_loss(kind: Loss, logits_BC: torch.Tensor, labels_BC: torch.Tensor) -> torch.Tensor:
    """Compute the mean loss of a batch: binary cross-entropy with logits, or cross-entropy with soft labels.

    Args:
        kind: `bce` or `cross_entropy`.
        logits_BC: logits, [batch, classes].
        labels_BC: labels in [0, 1], [batch, classes]; rows of mixed clips are weighted sums.

    Returns:
        Scalar, float32.
    """
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(logits_BC.float(), labels_BC)
    return functional.cross_entropy(logits_BC.float(), labels_BC)


def probabilities(kind: Loss, logits_BC: torch.Tensor) -> torch.Tensor:
    """Return the probabilities of logits, float32 [batch, classes]: sigmoid for `bce`, softmax for `cross_entropy`."""
    return torch.sigmoid(logits_BC.float()) if kind == "bce" else torch.softmax(logits_BC.float(), dim=-1)
