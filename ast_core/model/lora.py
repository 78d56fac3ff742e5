"""Low-rank adaptation (LoRA, Hu et al. 2021) of the attention projections: W + alpha / rank * B A, with W frozen.

The package `peft` needs transformers and accelerate, which nothing else here needs; this is the part of it that an AST
uses. Only the checkpoints of a training hold A and B: `merged_weights` adds them to W for everything that reads an
epoch's weights.

Shapes: R rank, I input features, O output features.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from ast_core.errors import require
from ast_core.model.transformer import AST, Attention

PARAMETERS = ("lora_a", "lora_b")
"""Names of the low-rank matrices in a `LoraLinear`."""


class LoraLinear(nn.Linear):
    """Linear layer with a low-rank update of its weight, which starts at 0.

    Args:
        plain: layer to adapt. This layer takes its weight and bias, and its place.
        rank: R.
        alpha: scale of the update times R.
    """

    def __init__(self, plain: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make and draw a weight
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.lora_a = nn.Parameter(plain.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(plain.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as in the authors' code
        self.scale = alpha / rank

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # nn.Linear's name
        """Map [..., I] to [..., O]. The update is not added to W first: its gradient needs none as large as W."""
        low = functional.linear(input, self.lora_a) * self.scale
        return functional.linear(input, self.weight, self.bias) + functional.linear(low, self.lora_b)

    @torch.no_grad()
    def merge(self) -> torch.Tensor:
        """Return W + alpha / rank * B A, [O, I]."""
        return torch.addmm(self.weight, self.lora_b, self.lora_a, alpha=self.scale)


def add_lora(model: AST, rank: int, alpha: float) -> None:
    """Replace the attention projections of all blocks by layers with low-rank updates, in place.

    A is drawn from torch's global random state.

    Raises:
        UserError: the rank is larger than the width of the model.
    """
    width = model.head.in_features
    require(
        rank <= width,
        f"model.lora-rank is {rank}, and the backbone is only {width} wide; give {width} or less, such as 8.",
    )
    for attention in [module for module in model.modules() if isinstance(module, Attention)]:
        attention.qkv = LoraLinear(attention.qkv, rank, alpha)
        attention.proj = LoraLinear(attention.proj, rank, alpha)


def merged_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's weights with all low-rank updates added, under the names that a model without LoRA has."""
    weights: dict[str, torch.Tensor] = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            weights[f"{name}.weight"] = module.merge()
            for parameter in PARAMETERS:
                del weights[f"{name}.{parameter}"]
    return weights
