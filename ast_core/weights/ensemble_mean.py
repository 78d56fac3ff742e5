"""An ensemble's prediction: the mean of its members' probabilities (of sigmoids, as published)."""

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
    """One model of an ensemble with the front end it was trained on."""

    name: str
    model: AST
    front_end: FrontEndConfig
    mean: float
    std: float
    loss: str
    """The loss that its logits were trained with: it says what turns them into probabilities."""
    config: ModelConfig
    """What the model was built from."""


def member_probabilities(
    member: Member, fbank_BTM: torch.Tensor, num_frames_B: torch.Tensor | None = None
) -> np.ndarray:
    """One member's probabilities, float32 [B, C], of raw log-mel float32 [B, T, M] on the model's device.

    `num_frames_B` are the frames that are not padding; only a model with `mask_padding` looks at them.
    """
    with torch.inference_mode():
        logits_BC = member.model((fbank_BTM - member.mean) / (2 * member.std), num_frames_B)
        return probabilities(member.loss, logits_BC).cpu().numpy()  # type: ignore[arg-type]


def mean_probabilities(member_scores: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over members, summed in float64; float32 [B, C]."""
    total_BC = np.zeros(member_scores[0].shape, np.float64)
    for scores_BC in member_scores:
        total_BC += scores_BC
    return (total_BC / len(member_scores)).astype(np.float32)
