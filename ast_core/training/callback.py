"""Events that a training reports while it runs, and its one question: whether it should stop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimizer step, as seen by the rank that did it."""

    step: int
    """Optimizer steps done since the training began."""
    epoch: int
    """Epoch of the step, counted from 1."""
    loss: float
    """Mean loss over the batch of all ranks."""
    learning_rate: float
    """Learning rate of the step."""
    clips: int
    """Clips in this rank's share of the batch."""
    seconds: float
    """Seconds from the end of the previous step to the end of this one, waiting included."""
    waiting_s: float
    """Part of `seconds` that the rank waited for the batch to be read."""


class TrainerCallback:
    """Base class of callbacks; its methods do nothing.

    Each rank calls its callback in the thread that trains, so a method must return quickly.
    """

    def on_train_begin(self, step: int) -> None:
        """Handle the start of the training, which continues from `step`."""

    def on_step_end(self, done: StepResult) -> None:
        """Handle the end of a step."""

    def on_checkpoint_saved(self, step: int, seconds: float) -> None:
        """Handle a checkpoint that rank 0 committed; `seconds` is the time that the commit took."""

    def should_stop(self) -> bool:
        """Return whether to commit a checkpoint now and stop.

        Only rank 0 asks: before each step and before each batch of held-out clips.
        """
        return False

    def on_stopped(self, step: int) -> None:
        """Handle the stop that `should_stop` asked for; rank 0 has committed everything up to `step`."""
