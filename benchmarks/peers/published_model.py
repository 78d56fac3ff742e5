"""Published model, step by step: a distilled DeiT with an explicit attention matrix, as in timm at that time.

Shapes: B clips, T frames, M mel bins, P tokens, E embedding, H heads, D embedding a head, C classes.
"""

from __future__ import annotations

import torch
from torch import nn


class PublishedAttention(nn.Module):
    """Attention softmax(q k^T) v with the [B, H, P, P] matrix in memory."""

    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (embed_dim // heads) ** -0.5
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, tokens_BPE: torch.Tensor) -> torch.Tensor:
        """Convert tokens [B, P, E] to tokens of the same shape."""
        clips, tokens, embed = tokens_BPE.shape
        parts = self.qkv(tokens_BPE).reshape(clips, tokens, 3, self.heads, embed // self.heads)
        query_BHPD, key_BHPD, value_BHPD = parts.permute(2, 0, 3, 1, 4)
        weights_BHPP = ((query_BHPD @ key_BHPD.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        mixed_BHPD = self.attn_drop(weights_BHPP) @ value_BHPD
        out_BPE: torch.Tensor = self.proj_drop(self.proj(mixed_BHPD.transpose(1, 2).reshape(clips, tokens, embed)))
        return out_BPE


class PublishedBlock(nn.Module):
    """Block of norm, attention, norm and MLP, with residuals."""

    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = PublishedAttention(embed_dim, heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.GELU(), nn.Linear(4 * embed_dim, embed_dim))

    def forward(self, tokens_BPE: torch.Tensor) -> torch.Tensor:
        """Convert tokens [B, P, E] to tokens of the same shape."""
        tokens_BPE = tokens_BPE + self.attn(self.norm1(tokens_BPE))
        out_BPE: torch.Tensor = tokens_BPE + self.mlp(self.norm2(tokens_BPE))
        return out_BPE


class PublishedAST(nn.Module):
    """Model of patches, two tokens, positions, blocks, mean of both tokens, LayerNorm and linear head.

    Args:
        embed_dim: E.
        depth: number of blocks.
        heads: H.
        stride: stride of the 16 x 16 patches, in mel bins and frames.
        bins: M.
        frames: T.
        classes: C.
    """

    def __init__(
        self, embed_dim: int, depth: int, heads: int, stride: int, bins: int, frames: int, classes: int
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, 16, stride=stride)
        patches = ((bins - 16) // stride + 1) * ((frames - 16) // stride + 1)
        self.tokens_12E = nn.Parameter(torch.randn(1, 2, embed_dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, patches + 2, embed_dim) * 0.02)
        self.blocks = nn.Sequential(*(PublishedBlock(embed_dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, classes))

    def forward(self, fbank_BTM: torch.Tensor) -> torch.Tensor:
        """Convert log-mel [B, T, M] to logits [B, C]."""
        patches_BPE = self.proj(fbank_BTM.unsqueeze(1).transpose(2, 3)).flatten(2).transpose(1, 2)
        tokens_BPE = torch.cat([self.tokens_12E.expand(len(fbank_BTM), -1, -1), patches_BPE], dim=1) + self.pos_embed
        tokens_BPE = self.norm(self.blocks(tokens_BPE))
        logits_BC: torch.Tensor = self.head((tokens_BPE[:, 0] + tokens_BPE[:, 1]) / 2)
        return logits_BC
