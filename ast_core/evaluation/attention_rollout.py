"""Attention rollout (Abnar and Zuidema 2020): the points of a spectrogram that a prediction attended to.

Shapes: T frames, M mel bins, P tokens, F and W patches in frequency and time.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional

from ast_core.model.transformer import AST, Attention, Block
from ast_core.weights.ensemble_mean import Member


@torch.no_grad()
def attention_rollout(member: Member, fbank_TM: torch.Tensor) -> torch.Tensor:
    """Return how much the prefix tokens attend, through all blocks, to each point of a clip.

    A block counts half as attention (the mean of its heads) and half as its skip connection. The value of a point is
    the mean over the patches that cover it.

    Args:
        member: model, mean and standard deviation.
        fbank_TM: raw log-mel of the training length, on the model's device.

    Returns:
        float32 [T, M] from 0 to 1; the largest value is 1, and points that no patch covers are 0.
    """
    model = member.model
    tokens_1PE, _ = model.tokens(((fbank_TM - member.mean) / (2 * member.std))[None], None, None)
    skip_PP = torch.eye(tokens_1PE.shape[1], device=fbank_TM.device)
    total_PP = skip_PP
    for layer in model.blocks:
        block = cast(Block, layer)
        total_PP = (_compute_attention(block.attn, block.norm1(tokens_1PE)) + skip_PP) / 2 @ total_PP
        tokens_1PE = block(tokens_1PE)
    patch_FW = total_PP[: model.prefix_tokens, model.prefix_tokens :].mean(dim=0).reshape(model.grid)
    share_TM = _spread_patches(patch_FW, model, fbank_TM.shape[0], fbank_TM.shape[1])
    return share_TM / share_TM.max()


def _compute_attention(attention: Attention, tokens_1PE: torch.Tensor) -> torch.Tensor:
    """Return the attention weights of one clip, the mean over heads, [P, P]; each row sums to 1."""
    query_HPD, key_HPD, _ = attention.qkv(tokens_1PE)[0].unflatten(1, (3, attention.heads, -1)).permute(1, 2, 0, 3)
    return torch.softmax(query_HPD @ key_HPD.transpose(1, 2) * query_HPD.shape[2] ** -0.5, dim=2).mean(dim=0)


def _spread_patches(patch_FW: torch.Tensor, model: AST, frames: int, bins: int) -> torch.Tensor:
    """Spread the patches' values over the points that they cover, [T, M]; overlapping patches are averaged."""
    weight = torch.ones(1, 1, *model.patch_proj.weight.shape[2:], device=patch_FW.device)
    both = torch.stack([patch_FW, torch.ones_like(patch_FW)])[:, None]
    summed_MT, count_MT = functional.conv_transpose2d(both, weight, stride=model.patch_proj.stride)[:, 0]
    mean_MT = summed_MT / count_MT.clamp_min(1)
    return functional.pad(mean_MT, (0, frames - mean_MT.shape[1], 0, bins - mean_MT.shape[0])).T
