"""Augmentation: each part against its definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ast_core.config import AugmentConfig
from ast_core.training.augment import apply, draw, mask_, mix_labels, mix_power

CONFIG = AugmentConfig(mixup_rate=0.5, freq_mask_bins=48, time_mask_frames=192, noise=True)


def test_draws_depend_on_seed_epoch_and_position_only():
    both = draw(CONFIG, 7, 2, np.array([3, 11]), 100, 1024, 128)
    one = draw(CONFIG, 7, 2, np.array([11]), 100, 1024, 128)
    assert both.lambda_B[1] == one.lambda_B[0]
    assert (both.freq_mask_B2[1] == one.freq_mask_B2[0]).all()
    assert draw(CONFIG, 8, 2, np.array([11]), 100, 1024, 128).noise_seed_B[0] != one.noise_seed_B[0]


def test_draws_have_the_published_distributions():
    draws = draw(CONFIG, 0, 1, np.arange(4000), 50, 1024, 128)
    mixed = draws.lambda_B < 1
    assert abs(mixed.mean() - 0.5) < 0.04
    assert abs(draws.lambda_B[mixed].mean() - 0.5) < 0.01
    assert abs(draws.lambda_B[mixed].std() - np.sqrt(1 / (4 * 21))) < 0.005  # Beta(10, 10)
    assert set(draws.partner_B) == set(range(50))
    assert draws.freq_mask_B2[:, 1].max() == 47
    assert abs(draws.time_mask_B2[:, 1].mean() - 95.5) < 4
    assert (draws.time_mask_B2.sum(axis=1) <= 1024).all()
    assert set(draws.roll_B) == set(range(-10, 10))


def test_mixing_adds_powers_and_lambda_one_changes_no_bit():
    a, b = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    mixed = mix_power(a, b, torch.tensor([0.3, 1.0], dtype=torch.float64))
    expected = torch.log(0.3**2 * a[0].exp() + 0.7**2 * b[0].exp())
    torch.testing.assert_close(mixed[0], expected)
    assert torch.equal(mixed[1], a[1])
    labels = mix_labels(torch.eye(2), torch.eye(2).flip(0), torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(labels, torch.tensor([[0.25, 0.75], [0.0, 1.0]]))


def test_mask_writes_raw_zero():
    out = mask_(torch.full((1, 6, 5), -4.0), torch.tensor([[1, 2]]), torch.tensor([[3, 1]]))
    assert (out[0, :, 1:3] == 0).all()
    assert (out[0, 3] == 0).all()
    assert (out[0, 0, [0, 3, 4]] == -4).all()


def test_noise_is_bounded_and_repeats_for_the_same_position():
    config = AugmentConfig(mixup_rate=0, freq_mask_bins=0, time_mask_frames=0, noise=True)
    zeros = torch.zeros(3, 40, 8)
    draws = draw(config, 0, 1, np.arange(3), 3, 40, 8).to_tensors()
    out = apply(draws, config, zeros, zeros, 0.0, 0.5)
    assert 0 <= out.min() <= out.max() <= 0.1
    assert torch.equal(out, apply(draws, config, zeros, zeros, 0.0, 0.5))


def test_apply_equals_its_parts_with_partners_of_mixed_clips_only():
    config = AugmentConfig(mixup_rate=0.5, freq_mask_bins=3, time_mask_frames=9)
    draws = draw(config, 3, 1, np.arange(12), 12, 40, 8)
    clips, partners = torch.randn(12, 40, 8), torch.randn(12, 40, 8)
    assert 0 < len(draws.mixed_K) < 12
    mixed = mix_power(clips, partners, torch.from_numpy(draws.lambda_B))
    hidden = torch.zeros(12, 40, 8, dtype=torch.bool)
    for row, (freq, time) in enumerate(zip(draws.freq_mask_B2, draws.time_mask_B2, strict=True)):
        hidden[row, :, freq[0] : freq.sum()] = True
        hidden[row, time[0] : time.sum()] = True
    expected = (mixed.masked_fill(hidden, 0.0) - -5.0) / 8.0
    before = clips.clone()
    torch.testing.assert_close(apply(draws.to_tensors(), config, clips, partners[draws.mixed_K], -5.0, 4.0), expected)
    assert torch.equal(clips, before)


def test_noise_is_uniform_and_a_clips_noise_does_not_depend_on_its_batch():
    config = AugmentConfig(mixup_rate=0, freq_mask_bins=0, time_mask_frames=0, noise=True)
    zeros = torch.zeros(6, 128, 128)
    draws = draw(config, 5, 1, np.arange(6), 6, 128, 128)
    out = apply(draws.to_tensors(), config, zeros, zeros, 0.0, 0.5)
    alone = draw(config, 5, 1, np.arange(4, 5), 6, 128, 128).to_tensors()
    assert torch.equal(out[4:5], apply(alone, config, zeros[:1], zeros[:0], 0.0, 0.5))
    uniform = out / torch.from_numpy(draws.noise_scale_B).float()[:, None, None]
    count = uniform[0].numel()
    assert (uniform.histc(16, 0, 1).view(16) / uniform.numel() - 1 / 16).abs().max() < 5 * (1 / 16 / count) ** 0.5
    flat = uniform.flatten(1) - 0.5
    neighbours = torch.stack([flat[0, :-1] @ flat[0, 1:], flat[0, :-128] @ flat[0, 128:], flat[0] @ flat[1]])
    assert (12 * neighbours.abs() / count).max() < 5 / count**0.5  # correlations, five sigmas


def test_roll_equals_torch_roll_of_each_clip():
    config = AugmentConfig(mixup_rate=0, freq_mask_bins=0, time_mask_frames=0, noise=True)
    clips = torch.randn(8, 30, 4)
    draws = draw(config, 1, 1, np.arange(8), 8, 30, 4)
    silent = dataclasses.replace(draws.to_tensors(), noise_scale_B=torch.zeros(8))
    rolled = [torch.roll(clip, int(frames), 0) for clip, frames in zip(clips, draws.roll_B, strict=True)]
    assert torch.equal(apply(silent, config, clips, clips[:0], 0.0, 0.5), torch.stack(rolled))
