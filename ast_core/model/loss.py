"""The two losses of AST, on logits and possibly mixed labels."""

from __future__ import annotations

import torch
from torch.nn import functional

from ast_core.config import Loss


def training_loss(kind: Loss, logits_BC: torch.Tensor, labels_BC: torch.Tensor) -> torch.Tensor:
    """Mean loss of a batch: binary cross-entropy with logits, or cross-entropy with soft labels.

    Args:
        kind: `bce` or `cross_entropy`.
        logits_BC: [batch, classes].
        labels_BC: in [0, 1], [batch, classes]; rows of mixed clips are weighted sums.

    Returns:
        Scalar, float32.
    """
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(logits_BC.float(), labels_BC)
    return functional.cross_entropy(logits_BC.float(), labels_BC)


def probabilities(kind: Loss, logits_BC: torch.Tensor) -> torch.Tensor:
    """What the loss trained the logits to mean: sigmoid or softmax, float32 [batch, classes]."""
    return torch.sigmoid(logits_BC.float()) if kind == "bce" else torch.softmax(logits_BC.float(), dim=-1)
