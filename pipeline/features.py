"""Why features differ from the published ones: rate, window and statistics of prepared shards beside AudioSet's.

python pipeline/features.py --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ast_core.config import AUDIOSET_MEAN, AUDIOSET_STD, FrontEndConfig
from ast_core.shards.index import ShardIndex
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import FeaturesSettings
from pipeline.run_folder import sync

EFFECTS = {
    "sample_rate_hz": "another rate moves every mel channel",
    "num_mel_bins": "another mel count needs a positional embedding of another grid",
    "frame_length_ms": "another window length blurs otherwise in time and frequency",
    "frame_shift_ms": "another hop changes how long a frame is",
    "window": "hanning as in the published checkpoints; the paper says hamming",
    "target_frames": "another length; padding counts in the statistics",
}


def features(settings: FeaturesSettings) -> list[tuple[str, str, str, str]]:
    """Print, setting by setting, what the shards have, what the published checkpoints had, and what that does.

    Returns:
        The rows: what, here, published, remark (empty where they agree).

    Raises:
        UserError: there are no shards, or no such split.
    """
    sync.download_inputs(settings)
    index = ShardIndex.load(settings.shards)
    rows = []
    for key, effect in EFFECTS.items():
        own, published = index.front_end[key], getattr(FrontEndConfig(), key)
        rows.append((key, str(own), str(published), effect if own != published else ""))
    data = settings.data
    mean, std = index.statistics(data.train_splits)
    used = (mean, std) if data.mean is None or data.std is None else (data.mean, data.std)
    rows.append(("mean of the shards", f"{mean:.4f}", f"{AUDIOSET_MEAN:.4f}", _level(mean - AUDIOSET_MEAN)))
    rows.append(("std of the shards", f"{std:.4f}", f"{AUDIOSET_STD:.4f}", _spread(std / AUDIOSET_STD)))
    own_statistics = "" if used == (mean, std) else f"the shards would be at {(mean - used[0]) / (2 * used[1]):+.3f}"
    rows.append(("normalised with", f"{used[0]:.4f} / {used[1]:.4f}", "the data set's own", own_statistics))
    table = Table("what", "here", "published", "remark", title=f"features of {settings.shards}")
    for row in rows:
        table.add_row(*row, style="" if row[3] else "dim")
    Console().print(table)
    return rows


def _level(difference: float) -> str:
    """log-mel is a natural logarithm of power: 10 / ln 10 decibels a unit."""
    return f"{4.343 * difference:+.1f} dB: recordings' level, padding, or another decoder or resampler"


def _spread(ratio: float) -> str:
    return f"{ratio:.2f} times AudioSet's: give these, not AudioSet's, unless a checkpoint is used unchanged"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: features(parse_settings(FeaturesSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.features import main

    main()
