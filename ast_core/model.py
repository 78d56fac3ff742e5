"""The Audio Spectrogram Transformer.

Shapes: B clips, T frames, M mel bins, P tokens, E embedding, H heads, D embedding a head, C classes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ast_core.config import ModelConfig, require

NORM_EPS = 1e-6
"""Of the blocks' and the final LayerNorm, as in DeiT."""


@dataclass(frozen=True)
class Backbone:
    """Size of a transformer."""

    embed_dim: int
    depth: int
    heads: int
    distilled: bool
    """Two prefix tokens, [CLS] and distillation, whose outputs are averaged; else [CLS] alone."""


BACKBONES = {
    "deit_tiny_distilled_patch16_224": Backbone(192, 12, 3, True),
    "deit_small_distilled_patch16_224": Backbone(384, 12, 6, True),
    "deit_base_distilled_patch16_224": Backbone(768, 12, 12, True),
    "deit_base_distilled_patch16_384": Backbone(768, 12, 12, True),
    "deit_base_patch16_224": Backbone(768, 12, 12, False),
    "vit_base_patch16_224": Backbone(768, 12, 12, False),
    "vit_large_patch16_224": Backbone(1024, 24, 16, False),
    "ast_micro": Backbone(96, 4, 3, True),
    "ast_mini": Backbone(144, 6, 3, True),
}
"""timm's names with the sizes of their papers, and two sizes of our own that train from scratch on a CPU."""


class Attention(nn.Module):
    """Multi-head self-attention; parameters named as timm names them."""

    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens_BPE: torch.Tensor) -> torch.Tensor:
        """[B, P, E] to the same shape."""
        query_BHPD, key_BHPD, value_BHPD = self.qkv(tokens_BPE).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHPD = functional.scaled_dot_product_attention(query_BHPD, key_BHPD, value_BHPD)
        projected_BPE: torch.Tensor = self.proj(mixed_BHPD.transpose(1, 2).flatten(2))
        return projected_BPE


class Block(nn.Module):
    """A transformer block, norm first: timm's, to the bit and the parameter's name, without its seconds of import."""

    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = Attention(embed_dim, heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        hidden = {
            "fc1": nn.Linear(embed_dim, 4 * embed_dim),
            "act": nn.GELU(),
            "fc2": nn.Linear(4 * embed_dim, embed_dim),
        }
        self.mlp = nn.Sequential(OrderedDict(hidden))

    def forward(self, tokens_BPE: torch.Tensor) -> torch.Tensor:
        """[B, P, E] to the same shape."""
        tokens_BPE = tokens_BPE + self.attn(self.norm1(tokens_BPE))
        out_BPE: torch.Tensor = tokens_BPE + self.mlp(self.norm2(tokens_BPE))
        return out_BPE


class AST(nn.Module):
    """Patches of a spectrogram, tokens, transformer blocks, mean of the prefix tokens, linear head.

    Args:
        config: patches, strides, backbone.
        num_mel_bins: M.
        target_frames: T.
        num_classes: C.

    Raises:
        UserError: the backbone is unknown, or the input is smaller than a patch.
    """

    def __init__(self, config: ModelConfig, num_mel_bins: int, target_frames: int, num_classes: int) -> None:
        super().__init__()
        require(
            config.backbone in BACKBONES,
            f"model.backbone {config.backbone!r} is unknown; choose one of {', '.join(BACKBONES)}.",
        )
        size = BACKBONES[config.backbone]
        self.grid = patch_grid(config, num_mel_bins, target_frames)
        self.distilled = size.distilled
        patch = (config.patch_freq, config.patch_time)
        self.patch_proj = nn.Conv2d(1, size.embed_dim, patch, stride=(config.freq_stride, config.time_stride))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.embed_dim))
        if size.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, size.embed_dim))
        tokens = self.grid[0] * self.grid[1] + self.prefix_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, size.embed_dim))
        self.blocks = nn.ModuleList(Block(size.embed_dim, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.embed_dim, eps=NORM_EPS)
        self.head_norm = nn.LayerNorm(size.embed_dim)  # eps 1e-5, the default, as published
        self.head = nn.Linear(size.embed_dim, num_classes)
        self._initialise()

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: 2 with distillation, else 1."""
        return 2 if self.distilled else 1

    def forward(self, fbank_BTM: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel [B, T, M] to logits [B, C]."""
        image_B1MT = fbank_BTM.transpose(1, 2).unsqueeze(1)
        tokens_BPE = self.patch_proj(image_B1MT).flatten(2).transpose(1, 2)  # frequency-major
        own = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        prefix = [token.expand(len(fbank_BTM), -1, -1) for token in own]
        tokens_BPE = torch.cat([*prefix, tokens_BPE], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens_BPE = block(tokens_BPE)
        pooled_BE = self.norm(tokens_BPE[:, : self.prefix_tokens]).mean(dim=1)
        logits_BC: torch.Tensor = self.head(self.head_norm(pooled_BE))
        return logits_BC

    def _initialise(self) -> None:
        for parameter in (self.cls_token, self.pos_embed, *([self.dist_token] if self.distilled else [])):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def patch_grid(config: ModelConfig, num_mel_bins: int, target_frames: int) -> tuple[int, int]:
    """Patches in frequency and in time; no padding, a rest at the edge is not seen.

    Raises:
        UserError: the input is smaller than one patch.
    """
    require(
        num_mel_bins >= config.patch_freq and target_frames >= config.patch_time,
        f"A {num_mel_bins} x {target_frames} input has no {config.patch_freq} x {config.patch_time} patch; "
        "raise front-end.target-frames or lower model.patch-freq / model.patch-time.",
    )
    freq = (num_mel_bins - config.patch_freq) // config.freq_stride + 1
    time = (target_frames - config.patch_time) // config.time_stride + 1
    return freq, time
