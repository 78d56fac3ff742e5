"""Compare the front end of prepared shards with the published one: a difference explains a result that differs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ast_core.config import AUDIOSET_MEAN, AUDIOSET_STD, DataConfig, FrontEndConfig
from ast_core.shards.index import ShardIndex

DECIBELS_PER_UNIT = 10 / math.log(10)
"""log-mel is the natural logarithm of a power."""
EFFECTS = {
    "sample_rate_hz": "another rate moves every mel channel",
    "num_mel_bins": "another number of mel bins needs a positional embedding of another grid",
    "frame_length_ms": "another window length blurs time and frequency differently",
    "frame_shift_ms": "another hop changes the duration of a frame",
    "window": "hanning made the published checkpoints; the paper says hamming",
    "target_frames": "another length; padding counts in the statistics",
}
"""The effect of each setting on the features."""


@dataclass(frozen=True)
class Comparison:
    """One setting or statistic of the shards and of the published front end."""

    name: str
    here: str
    published: str
    remark: str
    """What the difference does; empty where both agree."""


def compare_front_ends(index: ShardIndex, data: DataConfig) -> list[Comparison]:
    """Compare every setting, and the statistics of the training splits, with the published ones.

    Raises:
        UserError: a training split does not exist or is empty.
    """
    rows = []
    for key, effect in EFFECTS.items():
        here, published = index.front_end[key], getattr(FrontEndConfig(), key)
        rows.append(Comparison(key, str(here), str(published), effect if here != published else ""))
    mean, std = index.statistics(data.train_splits)
    used = (mean, std) if data.mean is None or data.std is None else (data.mean, data.std)
    level = f"{DECIBELS_PER_UNIT * (mean - AUDIOSET_MEAN):+.1f} dB: the recordings' level, padding, another decoder or"
    spread = (
        f"{std / AUDIOSET_STD:.2f} times AudioSet's: normalise with these, not with AudioSet's, unless a checkpoint"
    )
    rows += [
        Comparison("mean of the shards", f"{mean:.4f}", f"{AUDIOSET_MEAN:.4f}", f"{level} resampler"),
        Comparison("std of the shards", f"{std:.4f}", f"{AUDIOSET_STD:.4f}", f"{spread} is used unchanged"),
    ]
    own = "" if used == (mean, std) else f"the shards' mean becomes {(mean - used[0]) / (2 * used[1]):+.3f}"
    rows.append(Comparison("normalised with", f"{used[0]:.4f} / {used[1]:.4f}", "the data set's own", own))
    return rows
