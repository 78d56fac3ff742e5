"""Define the Audio Spectrogram Transformer (AST).

Shapes: B clips, T frames, M mel bins, P tokens, E embedding, H heads, D embedding a head, K patches in time,
C classes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ast_core.config import ModelConfig
from ast_core.errors import require

NORM_EPS = 1e-6
"""Epsilon of the blocks' and the final LayerNorm, as in DeiT."""


@dataclass(frozen=True)
class Backbone:
    """Size of a transformer."""

    embed_dim: int
    depth: int
    heads: int
    distilled: bool
    """Whether there are two prefix tokens, [CLS] and distillation, whose outputs are averaged; else only [CLS]."""


BACKBONES = {
    "deit_tiny_distilled_patch16_224": Backbone(192, 12, 3, True),
    "deit_small_distilled_patch16_224": Backbone(384, 12, 6, True),
    "deit_base_distilled_patch16_224": Backbone(768, 12, 12, True),
    "deit_base_distilled_patch16_384": Backbone(768, 12, 12, True),
    "deit_base_patch16_224": Backbone(768, 12, 12, False),
    "deit_base_patch16_384": Backbone(768, 12, 12, False),
    "vit_base_patch16_224": Backbone(768, 12, 12, False),
    "vit_base_patch16_384": Backbone(768, 12, 12, False),
    "vit_large_patch16_224": Backbone(1024, 24, 16, False),
    "vit_large_patch16_384": Backbone(1024, 24, 16, False),
    "ast_micro": Backbone(96, 4, 3, True),
    "ast_mini": Backbone(144, 6, 3, True),
}
"""timm's names with the sizes of their papers, and two small sizes that train from scratch on a CPU."""


@dataclass(frozen=True)
class Embeddings:
    """What a model makes of each clip before its head; K patches in time."""

    clip_BE: torch.Tensor
    """Mean of the prefix tokens after the final norm."""
    frames_BKE: torch.Tensor
    """Patches averaged over frequency after the final norm, one for each place in time."""


class Attention(nn.Module):
    """Multi-head self-attention whose parameters have timm's names."""

    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens_BPE: torch.Tensor, seen_B11P: torch.Tensor | None = None) -> torch.Tensor:
        """Map [B, P, E] to the same shape; no token attends to tokens that are False in `seen_B11P`."""
        query_BHPD, key_BHPD, value_BHPD = self.qkv(tokens_BPE).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHPD = functional.scaled_dot_product_attention(query_BHPD, key_BHPD, value_BHPD, attn_mask=seen_B11P)
        projected_BPE: torch.Tensor = self.proj(mixed_BHPD.transpose(1, 2).flatten(2))
        return projected_BPE


class Block(nn.Module):
    """Transformer block with the norm first: bit by bit timm's, with its parameter names, without importing timm."""

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

    def forward(self, tokens_BPE: torch.Tensor, seen_B11P: torch.Tensor | None = None) -> torch.Tensor:
        """Map [B, P, E] to the same shape; see `Attention.forward` for `seen_B11P`."""
        tokens_BPE = tokens_BPE + self.attn(self.norm1(tokens_BPE), seen_B11P)
        out_BPE: torch.Tensor = tokens_BPE + self.mlp(self.norm2(tokens_BPE))
        return out_BPE


class AST(nn.Module):
    """Audio Spectrogram Transformer: patches, tokens, transformer blocks, mean of the prefix tokens, linear head.

    Args:
        config: patches, strides and backbone.
        num_mel_bins: M, mel bins of the input.
        target_frames: T, frames of the input.
        num_classes: C, number of labels.

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
        self.time_stride = config.time_stride
        self.mask_padding = config.mask_padding
        self.recompute = False  # activation checkpointing, which saves memory; set by the trainer
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
        if not self.pos_embed.is_meta:  # meta tensors have no values, and torch would load seconds of decompositions
            self._initialise()

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches: 2 with distillation, else 1."""
        return 2 if self.distilled else 1

    def forward(
        self,
        fbank_BTM: torch.Tensor,
        num_frames_B: torch.Tensor | None = None,
        kept_BK: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map normalised log-mel to logits.

        Args:
            fbank_BTM: normalised log-mel, float [B, T, M].
            num_frames_B: frames that are not padding, for a model with `mask_padding`; None means all frames.
            kept_BK: indices of the patches that patchout keeps, int64; None means all patches.

        Returns:
            Logits, [B, C].
        """
        tokens_BPE, seen_B11P = self.tokens(fbank_BTM, num_frames_B, kept_BK)
        for block in self.blocks:
            if self.recompute and self.training:
                tokens_BPE = checkpoint(block, tokens_BPE, seen_B11P, use_reentrant=False)
            else:
                tokens_BPE = block(tokens_BPE, seen_B11P)
        pooled_BE = self.norm(tokens_BPE[:, : self.prefix_tokens]).mean(dim=1)
        logits_BC: torch.Tensor = self.head(self.head_norm(pooled_BE))
        return logits_BC

    def embed(
        self, fbank_BTM: torch.Tensor, num_frames_B: torch.Tensor | None = None, layer: int | None = None
    ) -> Embeddings:
        """Map normalised log-mel to embeddings, to which the final norm is applied whatever the layer is.

        Args:
            fbank_BTM: normalised log-mel, float [B, T, M].
            num_frames_B: frames that are not padding, for a model with `mask_padding`; None means all frames.
            layer: block whose output is used, counted from 1; None for the last one, whose clip embedding is what the
                head takes.

        Raises:
            UserError: the model has no such block.
        """
        last, count = self.find_layer(layer), self.prefix_tokens
        tokens_BPE, seen_B11P = self.tokens(fbank_BTM, num_frames_B, None)
        for block in self.blocks[:last]:
            tokens_BPE = block(tokens_BPE, seen_B11P)
        normed_BPE = self.norm(tokens_BPE)
        return Embeddings(normed_BPE[:, :count].mean(dim=1), normed_BPE[:, count:].unflatten(1, self.grid).mean(dim=1))

    def find_layer(self, layer: int | None) -> int:
        """Return the number of a block, counted from 1; the last one for None.

        Raises:
            UserError: the model has no such block.
        """
        depth = len(self.blocks)
        known = layer is None or (isinstance(layer, int) and not isinstance(layer, bool) and 1 <= layer <= depth)
        require(known, f"layer is {layer!r}, but this model has {depth} blocks; give a number from 1 to {depth}.")
        return depth if layer is None else layer

    def tokens(
        self, fbank_BTM: torch.Tensor, num_frames_B: torch.Tensor | None, kept_BK: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the first block's input [B, P, E], and which tokens to attend to, [B, 1, 1, P]; None for all."""
        clips, count = fbank_BTM.shape[0], self.prefix_tokens  # `len` would fix the batch in an exported graph
        patches_BPE = self._embed_patches(fbank_BTM) + self.pos_embed[:, count:]
        if kept_BK is not None:
            patches_BPE = patches_BPE.gather(1, kept_BK[:, :, None].expand(-1, -1, patches_BPE.shape[2]))
        own: list[torch.Tensor] = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        # Expand each token by itself: the gradient of a joint view has strides that distributed training warns of.
        prefix = [(token + self.pos_embed[:, n : n + 1]).expand(clips, -1, -1) for n, token in enumerate(own)]
        tokens_BPE = torch.cat([*prefix, patches_BPE], dim=1)
        if not self.mask_padding or num_frames_B is None:
            return tokens_BPE, None
        seen_BP = self._find_sound(num_frames_B)
        if kept_BK is not None:
            seen_BP = seen_BP.gather(1, kept_BK)
        return tokens_BPE, functional.pad(seen_BP, (count, 0), value=True)[:, None, None, :]

    def _embed_patches(self, fbank_BTM: torch.Tensor) -> torch.Tensor:
        """Return the projections of the patches, frequency-major, [B, P, E].

        Patches without overlap are one matrix product: a convolution of one channel takes seven times as long on a CPU.
        The weight is transposed rather than the input, which is larger: patches of full height need no copy of it.
        """
        freq, time = self.patch_proj.kernel_size
        if self.patch_proj.stride != (freq, time):
            projected_BEMT: torch.Tensor = self.patch_proj(fbank_BTM.transpose(1, 2).unsqueeze(1))
            return projected_BEMT.flatten(2).transpose(1, 2)
        rows, columns = self.grid
        cut_BTM = fbank_BTM[:, : columns * time, : rows * freq]
        patches_BPTM = cut_BTM.unflatten(2, (rows, freq)).unflatten(1, (columns, time)).permute(0, 3, 1, 2, 4)
        weight_ETM = self.patch_proj.weight[:, 0].transpose(1, 2)
        return functional.linear(patches_BPTM.flatten(3).flatten(1, 2), weight_ETM.flatten(1), self.patch_proj.bias)

    def _find_sound(self, num_frames_B: torch.Tensor) -> torch.Tensor:
        """Return which patches have at least one frame that is not padding, [B, P]."""
        first_T = torch.arange(self.grid[1], device=num_frames_B.device) * self.time_stride
        return (first_T < num_frames_B[:, None]).repeat(1, self.grid[0])

    def _initialise(self) -> None:
        for parameter in (self.cls_token, self.pos_embed, *([self.dist_token] if self.distilled else [])):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def patch_grid(config: ModelConfig, num_mel_bins: int, target_frames: int) -> tuple[int, int]:
    """Return the number of patches in frequency and in time. There is no padding: a rest at the edge is dropped.

    Raises:
        UserError: the input is smaller than one patch.
    """
    require(
        num_mel_bins >= config.patch_freq and target_frames >= config.patch_time,
        f"An input of {num_mel_bins} x {target_frames} is smaller than a patch of {config.patch_freq} x "
        f"{config.patch_time}; "
        "raise front-end.target-frames or lower model.patch-freq / model.patch-time.",
    )
    freq = (num_mel_bins - config.patch_freq) // config.freq_stride + 1
    time = (target_frames - config.patch_time) // config.time_stride + 1
    return freq, time
