"""Which clip comes when: pure functions of (seed, epoch), cut into steps and ranks. Nothing here is state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ast_core.config import Sampler

_CLIPS_AT_ONCE = 4096
"""Whose labels become float64 together: of AudioSet's two million all at once they were 9 GB on every rank."""


def clip_weights(labels_NC: np.ndarray) -> np.ndarray:
    """Class-balanced weights of clips: the sum over a clip's labels of `1000 / (count + 0.01)` (AST's published code).

    Args:
        labels_NC: 0 or 1, [clips, classes].

    Returns:
        float64 [clips].
    """
    class_weight_C = 1000.0 / (labels_NC.sum(axis=0, dtype=np.float64) + 0.01)
    weight_N = np.empty(len(labels_NC))
    for first in range(0, len(labels_NC), _CLIPS_AT_ONCE):
        part = slice(first, first + _CLIPS_AT_ONCE)
        weight_N[part] = (labels_NC[part] > 0).astype(np.float64) @ class_weight_C
    return weight_N


def epoch_order(sampler: Sampler, labels_NC: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Clip indices of one epoch: a permutation, or N draws with replacement in proportion to `clip_weights`.

    Returns:
        int64 [clips].
    """
    rng = np.random.default_rng([0, seed, epoch])
    clips = len(labels_NC)
    if sampler == "shuffle":
        return rng.permutation(clips)
    weights = clip_weights(labels_NC)
    cumulative = np.cumsum(weights)
    draws = np.searchsorted(cumulative, rng.random(clips) * cumulative[-1], side="right")
    order_N: np.ndarray = np.minimum(draws, clips - 1)
    return order_N


def steps_per_epoch(clips: int, batch_size: int) -> int:
    """Steps that see every position of an epoch; the last batch is filled up from the epoch's start."""
    return -(-clips // batch_size)


def rank_steps(clips: int, batch_size: int, rank: int, world: int, first_step: int = 0) -> Iterator[np.ndarray]:
    """Positions in the epoch's order that a rank takes, step by step: the same global batches for any world size.

    The last batch wraps round to the epoch's start, so that every step has `batch_size` clips on every world size
    that divides it. Resuming at `first_step` gives the suffix.

    Yields:
        int64 [batch_size / world].
    """
    share = batch_size // world
    for step in range(first_step, steps_per_epoch(clips, batch_size)):
        first = step * batch_size + rank * share
        yield np.arange(first, first + share)


def evaluation_share(clips: int, rank: int, world: int) -> np.ndarray:
    """Clip indices that a rank evaluates: over all ranks every clip exactly once."""
    return np.arange(rank, clips, world)
