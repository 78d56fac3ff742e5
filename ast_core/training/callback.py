"""What a training tells while it runs, and the one thing that it asks: whether to leave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """One optimiser step, as the rank that did it saw it."""

    step: int
    """Optimiser steps done since the training began."""
    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over the whole batch, all ranks' shares."""
    learning_rate: float
    clips: int
    """Of this rank's share."""
    seconds: float
    """From one step's end to the next one's, waiting included."""
    waiting_s: float
    """Of these, spent waiting for the batch to be read."""


class TrainerCallback:
    """Told what happens on each rank, in the training's own thread, so it must be quick; this one does nothing."""

    def on_train_begin(self, step: int) -> None:
        """The training goes on from `step`."""

    def on_step_end(self, done: StepResult) -> None:
        """A step was done."""

    def on_checkpoint_saved(self, step: int, seconds: float) -> None:
        """Rank 0 committed a checkpoint to resume from, which took so long."""

    def should_stop(self) -> bool:
        """Whether to commit a checkpoint now and leave. Asked of rank 0 before each step and each batch of a test."""
        return False

    def on_stopped(self, step: int) -> None:
        """Rank 0's last word before it leaves: everything up to `step` is on disk."""
