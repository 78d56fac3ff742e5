"""Learning rate as a pure function of epoch and step."""

from __future__ import annotations

from ast_core.config import OptimConfig


def learning_rate(config: OptimConfig, epoch: int, step: int) -> float:
    """Rate of one step.

    Linear warm-up over `warmup_steps`; then times `decay_factor` after epoch `decay_first_epoch` and after every
    `decay_every_epochs` more. (The published code sets the warm-up every 50 steps and so trains its first 50 at
    rate 0: a fault that is not repeated here.)

    Args:
        config: the recipe's optimisation.
        epoch: counted from 1.
        step: optimiser steps done before this one, over all epochs.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = epoch - 1
    decays = 0
    if config.decay_first_epoch and done >= config.decay_first_epoch:
        decays = 1 + (done - config.decay_first_epoch) // config.decay_every_epochs
    return config.learning_rate * warm * config.decay_factor**decays
