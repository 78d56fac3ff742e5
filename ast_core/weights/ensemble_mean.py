"""Prediction of an ensemble: the mean of its members' probabilities, as in AST's published code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.model.loss import probabilities
from ast_core.model.transformer import AST


@dataclass(frozen=True)
class Member:
    """One model of an ensemble with the front end that it was trained on."""

    name: str
    """Name of the member, such as `seed-0`."""
    model: AST
    """Model in evaluation mode."""
    front_end: FrontEndConfig
    """Front end that the model was trained on."""
    mean: float
    """Mean of the training set's log-mel."""
    std: float
    """Standard deviation of the training set's log-mel."""
    loss: str
    """Loss that the model was trained with; it decides how logits become probabilities."""
    config: ModelConfig
    """Configuration that the model was built from."""


def member_probabilities(
    member: Member, fbank_BTM: torch.Tensor, num_frames_B: torch.Tensor | None = None
) -> np.ndarray:
    """Return one member's probabilities, float32 [B, C].

    Args:
        member: model and normalisation.
        fbank_BTM: raw log-mel, float32, on the model's device.
        num_frames_B: frames that are not padding; only a model with `mask_padding` uses them.
    """
    with torch.inference_mode():
        logits_BC = member.model((fbank_BTM - member.mean) / (2 * member.std), num_frames_B)
        return probabilities(member.loss, logits_BC).cpu().numpy()  # type: ignore[arg-type]


def mean_probabilities(member_scores: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over members, float32 [B, C], summed in float64."""
    total_BC = np.zeros(member_scores[0].shape, np.float64)
    for scores_BC in member_scores:
        total_BC += scores_BC
    return (total_BC / len(member_scores)).astype(np.float32)
