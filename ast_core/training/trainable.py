"""Which weights of a model train in an epoch, and at which learning rates.

The head is the last norm and the linear layer: both are near the labels. All other weights are the backbone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ast_core.config import Job, OptimConfig
from ast_core.model import lora
from ast_core.model.transformer import AST


def is_backbone_frozen(optim: OptimConfig, epoch: int) -> bool:
    """Return whether only the head trains in an epoch, which is counted from 1."""
    return optim.freeze_backbone_epochs == -1 or epoch <= optim.freeze_backbone_epochs


def set_trainable(model: AST, job: Job, epoch: int) -> bool:
    """Set which parameters have gradients in an epoch; return whether that changed.

    A parameter without a gradient takes no part in the backward pass, and the optimizer passes over it: no weight
    decay, no moments. Its moments and Adam's bias correction begin at its first step.
    """
    frozen, changed = is_backbone_frozen(job.optim, epoch), False
    for name, parameter in model.named_parameters():
        trains = _is_head(name) or (not frozen and _can_train(name, job))
        changed |= parameter.requires_grad != trains
        parameter.requires_grad_(trains)
    return changed


def group_parameters(model: AST, job: Job) -> list[dict[str, Any]]:
    """Return Adam's parameter groups: one for each learning rate, with the parameters that train in some epoch.

    `peak` of a group is its learning rate after warm-up, before decays. Without the keys of fine-tuning there is one
    group of all parameters in the model's order.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    always_frozen = job.optim.freeze_backbone_epochs == -1
    for name, parameter in model.named_parameters():
        if _is_head(name) or (not always_frozen and _can_train(name, job)):
            groups.setdefault(_peak_rate(name, len(model.blocks), job.optim), []).append(parameter)
    return [{"params": parameters, "lr": peak, "peak": peak} for peak, parameters in groups.items()]


def _is_head(name: str) -> bool:
    """Return whether a parameter belongs to `head` or `head_norm`."""
    return name.startswith("head")


def _can_train(name: str, job: Job) -> bool:
    """Return whether a parameter of the backbone trains while the backbone is not frozen."""
    return job.model.lora_rank == 0 or name.endswith(lora.PARAMETERS)


def _peak_rate(name: str, depth: int, optim: OptimConfig) -> float:
    """Return a parameter's learning rate after warm-up.

    The layers are counted as in the fine-tuning of BEiT and MAE: the embeddings are layer 0, the blocks are 1 to
    `depth`, and the final norm and the head are the layer after them.
    """
    if _is_head(name):
        return optim.head_learning_rate or optim.learning_rate
    first, _, rest = name.partition(".")
    layer = int(rest.partition(".")[0]) + 1 if first == "blocks" else depth + 1 if first == "norm" else 0
    return optim.learning_rate * optim.layer_decay ** (depth + 1 - layer)
