"""A probe as the head of the model whose embeddings it was fitted on.

Shapes: B clips, E features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ast_core.model.transformer import AST
from ast_core.probing.linear_probe import LinearProbe
from ast_core.serialization import to_dict, to_identity
from ast_core.weights.ensemble_mean import Member


def compute_head_input(model: AST, embeddings_BE: np.ndarray) -> np.ndarray:
    """Return what a model's head sees of clip embeddings, float32 [B, E]: their layer normalisation `head_norm`.

    Args:
        model: model that made the embeddings, on any device.
        embeddings_BE: clip embeddings of the last layer.
    """
    with torch.inference_mode():
        device = model.head_norm.weight.device
        normed_BE = model.head_norm(torch.from_numpy(np.ascontiguousarray(embeddings_BE, np.float32)).to(device))
        found: np.ndarray = normed_BE.cpu().numpy()
        return found


def replace_head(
    member: Member, probe: LinearProbe, labels: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return weights and identity of a member whose head is a probe, in the form that `write_bundle` takes.

    Args:
        member: model on whose features the probe was fitted.
        probe: weights on those features as they are.
        labels: names of the classes, in the order of the probe's rows.
    """
    weights = {name: value.detach().cpu() for name, value in member.model.state_dict().items()}
    weights["head.weight"] = torch.from_numpy(probe.weight_CE.astype(np.float32))
    weights["head.bias"] = torch.from_numpy(probe.bias_C.astype(np.float32))
    identity = {
        "labels": list(labels),
        "model": to_identity(member.config),
        "front_end": to_dict(member.front_end),
        "mean": member.mean,
        "std": member.std,
        "loss": probe.loss,
    }
    return weights, identity
