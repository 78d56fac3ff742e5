"""Learning rate: the published recipes' rates, epoch by epoch."""

from __future__ import annotations

import pytest

from ast_core.config import OptimConfig
from ast_core.training.schedule import learning_rate


def test_full_set_halves_after_epochs_two_three_four():
    config = OptimConfig(learning_rate=1e-5, warmup_steps=1000)
    rates = [learning_rate(config, epoch, 10_000) for epoch in range(1, 6)]
    assert rates == pytest.approx([1e-5, 1e-5, 5e-6, 2.5e-6, 1.25e-6])


def test_balanced_set_halves_after_ten_and_every_five():
    config = OptimConfig(epochs=25, learning_rate=5e-5, decay_first_epoch=10, decay_every_epochs=5)
    rates = [learning_rate(config, epoch, 10_000) for epoch in (10, 11, 15, 16, 21)]
    assert rates == pytest.approx([5e-5, 2.5e-5, 2.5e-5, 1.25e-5, 6.25e-6])


def test_warm_up_is_linear_and_starts_above_zero():
    config = OptimConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(config, 1, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
