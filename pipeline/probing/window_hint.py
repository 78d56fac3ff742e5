"""Hint that the clips are much shorter than the windows of the model.

Shapes: N clips.
"""

from __future__ import annotations

import math

import numpy as np

from ast_core.weights.ensemble_mean import Member

_STEP = 16
"""Multiple of frames that is suggested, as in the published lengths 1024, 512 and 128."""


def suggest_window(lengths_N: np.ndarray, member: Member) -> str:
    """Return a sentence that names a window, or "" unless over half of the clips fill less than half of the model's.

    The window is that of the longest of these clips.

    Args:
        lengths_N: length of each clip in seconds.
        member: model that made the embeddings.
    """
    front_end = member.front_end
    short_K = lengths_N[lengths_N < front_end.clip_s / 2]
    if 2 * len(short_K) <= len(lengths_N):
        return ""
    frames = 1 + (1000 * short_K.max() - front_end.frame_length_ms) / front_end.frame_shift_ms
    wanted = _STEP * math.ceil(max(frames, member.config.patch_time, _STEP) / _STEP)
    if wanted >= front_end.target_frames:
        return ""
    return (
        f"{len(short_K)} of {len(lengths_N)} clips are shorter than half of the model's window of "
        f"{front_end.clip_s:.1f} s: compare with --target-frames {wanted} and a new --run-dir, which embeds them with "
        "less padding."
    )
