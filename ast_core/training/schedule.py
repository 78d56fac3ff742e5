"""Learning rate as a pure function of epoch and step."""

from __future__ import annotations

from ast_core.config import OptimConfig


def learning_rate(config: OptimConfig, epoch: int, step: int, peak: float | None = None) -> float:
    """Return the learning rate of one step.

    The rate rises linearly over `warmup_steps`. It is multiplied by `decay_factor` after epoch `decay_first_epoch` and
    again after every `decay_every_epochs` epochs. AST's published code updates the warm-up only every 50 steps and so
    trains its first 50 steps at rate 0; this function does not repeat that fault.

    Args:
        config: the recipe's optimizer settings.
        epoch: counted from 1.
        step: optimizer steps done before this one, over all epochs.
        peak: rate after warm-up and before decays; None means the recipe's `learning_rate`.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = epoch - 1
    decays = 0
    if config.decay_first_epoch and done >= config.decay_first_epoch:
        decays = 1 + (done - config.decay_first_epoch) // config.decay_every_epochs
    return (config.learning_rate if peak is None else peak) * warm * config.decay_factor**decays
