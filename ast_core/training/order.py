"""Order of the clips in an epoch, split into steps and ranks.

All functions are pure. The order follows from (seed, epoch) alone, so a run needs no random state to resume.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ast_core.config import Sampler
from ast_core.shards.sparse_labels import SparseLabels

Labels = SparseLabels | np.ndarray
"""Labels of clips, sparse or as a matrix of 0 and 1, [clips, classes]."""
_CLIPS_AT_ONCE = 4096
"""Clips whose labels are converted to float64 at once: all two million of AudioSet together took 9 GB on every rank."""


def clip_weights(labels: Labels) -> np.ndarray:
    """Return the class-balanced weight of each clip, as in AST's published code.

    A clip's weight is the sum over its labels of `1000 / (count + 0.01)`, where count is the label's number of clips.
    Clips without a label, which the paper's data do not have, count as one more class.

    Args:
        labels: labels of the clips.

    Returns:
        float64 [clips].
    """
    sparse = labels if isinstance(labels, SparseLabels) else SparseLabels.from_dense(labels)
    class_weight_C = 1000.0 / (sparse.count_C.astype(np.float64) + 0.01)
    weight_N = np.empty(len(sparse))
    for first in range(0, len(sparse), _CLIPS_AT_ONCE):
        part = np.arange(first, min(first + _CLIPS_AT_ONCE, len(sparse)))
        weight_N[part] = sparse.rows(part).astype(np.float64) @ class_weight_C  # dense: sums keep their last bit
    bare_N = weight_N == 0
    weight_N[bare_N] = 1000.0 / (bare_N.sum() + 0.01)
    return weight_N


def epoch_order(sampler: Sampler, labels: Labels, seed: int, epoch: int) -> np.ndarray:
    """Return the clip indices of one epoch, in order.

    The sampler `shuffle` returns a permutation. The other draws as many clips with replacement, in proportion to
    `clip_weights`.

    Returns:
        int64 [clips].
    """
    rng = np.random.default_rng([0, seed, epoch])
    clips = len(labels)
    if sampler == "shuffle":
        return rng.permutation(clips)
    weights = clip_weights(labels)
    cumulative = np.cumsum(weights)
    draws = np.searchsorted(cumulative, rng.random(clips) * cumulative[-1], side="right")
    order_N: np.ndarray = np.minimum(draws, clips - 1)
    return order_N


def steps_per_epoch(clips: int, batch_size: int) -> int:
    """Return the number of steps that cover every position of an epoch; the last batch wraps to the epoch's start."""
    return -(-clips // batch_size)


def rank_steps(clips: int, batch_size: int, rank: int, world: int, first_step: int = 0) -> Iterator[np.ndarray]:
    """Yield the positions in the epoch's order that a rank takes, step by step from `first_step` on.

    All ranks together take the same batches for any world size. The last batch wraps to the epoch's start, so every
    step has `batch_size` clips on every world size that divides it.

    Yields:
        int64 [batch_size / world].
    """
    share = batch_size // world
    for step in range(first_step, steps_per_epoch(clips, batch_size)):
        first = step * batch_size + rank * share
        yield np.arange(first, first + share)


def evaluation_share(clips: int, rank: int, world: int) -> np.ndarray:
    """Return the clip indices that a rank evaluates; all ranks together evaluate every clip exactly once."""
    return np.arange(rank, clips, world)
