"""Augmentation of a training batch, on the batch's device.

Random numbers are drawn from (seed, epoch, position in the epoch), so a clip gets the same ones on any number of ranks.

Shapes: B clips, T frames, M mel bins, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ast_core.config import AugmentConfig
from ast_core.errors import require


@dataclass(frozen=True)
class Draws:
    """Random choices for a batch, drawn on the host."""

    lambda_B: np.ndarray
    """Share of the clip itself in its mixture, float64; 1 if the clip is not mixed."""
    partner_B: np.ndarray
    """Index of the clip that is mixed in, int64."""
    freq_mask_B2: np.ndarray
    """First bin and width in bins of the frequency mask, int64."""
    time_mask_B2: np.ndarray
    """First frame and width in frames of the time mask, int64."""
    noise_scale_B: np.ndarray
    """Amplitude of the additive noise, float64."""
    roll_B: np.ndarray
    """Number of frames to roll by, int64."""
    noise_seed_B: np.ndarray
    """Seed of each clip's noise, int64."""

    @property
    def mixed_K(self) -> np.ndarray:
        """Positions in the batch of the mixed clips, int64, ascending."""
        return np.flatnonzero(self.lambda_B < 1)

    def to_tensors(self) -> DrawTensors:
        """Return the choices as `apply` takes them, on the host."""
        mixed_K = self.mixed_K
        arrays = (
            mixed_K, self.lambda_B[mixed_K], self.freq_mask_B2, self.time_mask_B2,
            self.noise_scale_B.astype(np.float32), self.roll_B, self.noise_seed_B.astype(np.int32),
        )  # fmt: skip
        return DrawTensors(*map(torch.from_numpy, arrays))


@dataclass(frozen=True)
class DrawTensors:
    """Random choices for a batch as tensors on one device: K of the B clips are mixed."""

    mixed_K: torch.Tensor
    """Positions in the batch of the mixed clips, int64."""
    lambda_K: torch.Tensor
    """Share of each mixed clip itself in its mixture, float64."""
    freq_mask_B2: torch.Tensor
    """First bin and width in bins of the frequency mask, int64."""
    time_mask_B2: torch.Tensor
    """First frame and width in frames of the time mask, int64."""
    noise_scale_B: torch.Tensor
    """Amplitude of the additive noise, float32."""
    roll_B: torch.Tensor
    """Number of frames to roll by, int64."""
    noise_seed_B: torch.Tensor
    """Seed of each clip's noise, int32."""


def draw(
    config: AugmentConfig, seed: int, epoch: int, positions_B: np.ndarray, clips: int, frames: int, bins: int
) -> Draws:
    """Draw the augmentation of a batch.

    The same arguments return the same numbers on any rank. A clip's numbers do not depend on the rest of the batch.

    Args:
        config: the recipe's augmentation.
        seed: the run's seed.
        epoch: counted from 1.
        positions_B: positions in the epoch's order.
        clips: number of clips to draw partners from.
        frames: T.
        bins: M.
    """
    rows = [
        _draw_one(config, np.random.default_rng([1, seed, epoch, int(p)]), clips, frames, bins) for p in positions_B
    ]
    lambdas, partners, freq, time, scales, rolls, seeds = zip(*rows, strict=True)
    return Draws(
        np.array(lambdas), np.array(partners), np.array(freq), np.array(time),
        np.array(scales), np.array(rolls), np.array(seeds),
    )  # fmt: skip


def patchout(
    config: AugmentConfig, seed: int, epoch: int, positions_B: np.ndarray, grid: tuple[int, int]
) -> np.ndarray | None:
    """Draw the patches that each clip keeps in a training step.

    The structured part removes whole rows and columns of patches, as PaSST-S does; the unstructured part then removes
    single patches. PaSST draws once for a batch. Here each clip has its own draw, keyed by the clip's position, so the
    draw is the same on any number of ranks.

    Args:
        config: the recipe's augmentation.
        seed: the run's seed.
        epoch: counted from 1.
        positions_B: positions in the epoch's order.
        grid: number of patches in frequency and in time.

    Returns:
        int64 [B, K], ascending indices of frequency-major patches; None if all patches are kept.

    Raises:
        UserError: the settings remove all patches.
    """
    freq, time = grid[0] - config.patchout_freq, grid[1] - config.patchout_time
    require(
        freq > 0 and time > 0 and freq * time > config.patchout_any,
        f"augment.patchout-freq {config.patchout_freq}, augment.patchout-time {config.patchout_time} and "
        f"augment.patchout-any {config.patchout_any} remove all of {grid[0]} x {grid[1]} patches (frequency x time); "
        "lower them.",
    )
    if (freq, time) == grid and not config.patchout_any:
        return None
    kept = []
    for position in positions_B:
        rng = np.random.default_rng([2, seed, epoch, int(position)])
        rows_F, columns_T = rng.permutation(grid[0])[:freq], rng.permutation(grid[1])[:time]
        patches_K = (rows_F[:, None] * grid[1] + columns_T).ravel()
        kept.append(np.sort(rng.permutation(patches_K)[config.patchout_any :]))
    return np.stack(kept)


def apply(
    draws: DrawTensors,
    config: AugmentConfig,
    fbank_BTM: torch.Tensor,
    partner_KTM: torch.Tensor,
    mean: float,
    std: float,
) -> torch.Tensor:
    """Mix, mask, normalise, add noise and roll, in the order of AST's published code.

    On a GPU nothing here waits for the device.

    Args:
        draws: random choices, on the device of the clips.
        config: the recipe's augmentation.
        fbank_BTM: raw log-mel, float16 or float32; not changed.
        partner_KTM: raw log-mel of the partners of the K mixed clips, in the order of `draws.mixed_K`.
        mean: mean of the training set's log-mel.
        std: standard deviation of the training set's log-mel.

    Returns:
        Normalised float32 [B, T, M].
    """
    out_BTM = fbank_BTM.to(torch.float32, copy=True)  # the only copy: the steps below work in place
    if len(draws.mixed_K):
        out_BTM[draws.mixed_K] = mix_power(fbank_BTM[draws.mixed_K], partner_KTM, draws.lambda_K)
    mask_(out_BTM, draws.freq_mask_B2, draws.time_mask_B2).sub_(mean).div_(2 * std)
    return _roll(_add_noise_(out_BTM, draws), draws.roll_B) if config.noise else out_BTM


def mix_power(fbank_BTM: torch.Tensor, partner_BTM: torch.Tensor, lambda_B: torch.Tensor) -> torch.Tensor:
    """Mix two log-mel spectrograms as the power of `l * w1 + (1 - l) * w2` without the cross terms.

    Returns `log(l^2 e^a + (1 - l)^2 e^b)`, [B, T, M]; with lambda 1 the bits of `fbank_BTM`.
    """
    own_BTM = fbank_BTM + 2 * torch.log(lambda_B).float()[:, None, None]
    other_BTM = partner_BTM + 2 * torch.log1p(-lambda_B).float()[:, None, None]
    return torch.logaddexp(own_BTM, other_BTM, out=own_BTM)


def mix_labels(labels_BC: torch.Tensor, partner_BC: torch.Tensor, lambda_B: torch.Tensor) -> torch.Tensor:
    """Return the labels of a mixture, `l * y1 + (1 - l) * y2`, [B, C]."""
    share_B1 = lambda_B.to(labels_BC.dtype)[:, None]
    return labels_BC * share_B1 + partner_BC * (1 - share_B1)


def mask_(fbank_BTM: torch.Tensor, freq_mask_B2: torch.Tensor, time_mask_B2: torch.Tensor) -> torch.Tensor:
    """Set one band of bins and one band of frames to 0 in raw log-mel, in place, padding included, as published."""
    hidden_BM = _mark_spans(freq_mask_B2, fbank_BTM.shape[2])
    hidden_BT = _mark_spans(time_mask_B2, fbank_BTM.shape[1])
    # Multiplying takes a quarter of the time of masked_fill. NaN and infinity stay: the trainer must find them.
    return fbank_BTM.mul_(~hidden_BT[:, :, None]).mul_(~hidden_BM[:, None, :])


def _draw_one(
    config: AugmentConfig, rng: np.random.Generator, clips: int, frames: int, bins: int
) -> tuple[object, ...]:
    # Always eight numbers, so that switching one augmentation off does not change the numbers of the others.
    uniform = rng.random(8)
    share = rng.beta(config.mixup_alpha, config.mixup_alpha)
    return (
        share if uniform[0] < config.mixup_rate else 1.0,
        min(int(uniform[1] * clips), clips - 1),
        _place_mask(config.freq_mask_bins, bins, uniform[2], uniform[3]),
        _place_mask(config.time_mask_frames, frames, uniform[4], uniform[5]),
        uniform[6] / 10,
        int(uniform[7] * 20) - 10,
        int(rng.integers(2**31)),
    )


def _place_mask(widest: int, size: int, width_uniform: float, start_uniform: float) -> tuple[int, int]:
    """Return start and width of a mask as torchaudio's FrequencyMasking and TimeMasking draw them.

    The width is uniform in [0, widest) and the start in [0, size - width); both are rounded down.
    """
    width = width_uniform * min(widest, size)
    return int(start_uniform * (size - width)), int(width)


def _mark_spans(mask_B2: torch.Tensor, size: int) -> torch.Tensor:
    """Return which of `size` places each clip's mask covers, bool [B, size]."""
    place_S = torch.arange(size, device=mask_B2.device)
    return (place_S >= mask_B2[:, :1]) & (place_S < mask_B2[:, :1] + mask_B2[:, 1:])


def _add_noise_(normal_BTM: torch.Tensor, draws: DrawTensors) -> torch.Tensor:
    """Add uniform noise in [0, scale), in place.

    Each value is a hash of the clip's seed and the place in the clip, so one call serves the batch, and the values are
    the same on any device and in any batch.
    """
    place_TM = torch.arange(normal_BTM[0].numel(), dtype=torch.int32, device=normal_BTM.device)
    hash_BTM = _hash_(_hash_(place_TM).view_as(normal_BTM[0]) ^ draws.noise_seed_B[:, None, None])
    uniform_BTM = hash_BTM.bitwise_and_(2**24 - 1).float().mul_(2**-24)  # float32 holds 24 bits exactly
    return normal_BTM.add_(uniform_BTM.mul_(draws.noise_scale_B[:, None, None]))


def _hash_(values: torch.Tensor) -> torch.Tensor:
    """Hash int32 values in place: a permutation of the 32-bit integers, lowbias32 of Wellons' hash prospector."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        values.bitwise_xor_((values >> shift).bitwise_and_((1 << 32 - shift) - 1)).mul_(factor)
    return values.bitwise_xor_((values >> 16).bitwise_and_(2**16 - 1))


def _roll(normal_BTM: torch.Tensor, roll_B: torch.Tensor) -> torch.Tensor:
    """Roll each clip by its own number of frames, as `torch.roll` does."""
    frames = normal_BTM.shape[1]
    source_BT = (torch.arange(frames, device=roll_B.device) - roll_B[:, None]) % frames
    return normal_BTM.gather(1, source_BT[:, :, None].expand_as(normal_BTM))
