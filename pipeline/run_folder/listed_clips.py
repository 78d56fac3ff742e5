"""Read the clips of a run's data set, with the rule for splits that its shards were made by."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from ast_core.config import DataConfig, Layout
from ast_core.dataset.manifest import Manifest, load_source
from ast_core.dataset.source_options import options_of
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from ast_core.errors import DamagedError
from ast_core.shards.index import INDEX, ShardIndex

SYNTHETIC = "synthetic"
"""Source of the demo: recordings that the project makes."""


def list_clips(
    data: DataConfig, source: Path | str, shards: Path, listings: Path | None = None
) -> tuple[Manifest, int]:
    """Return the clips of the data set, and the rule that placed those without a split.

    Shards of version 0.1.0 keep its rule: the members of their run are trained on its training clips.

    Args:
        data: settings of the data set.
        source: its folder, manifest, glob or URI; the demo's was made before.
        shards: folder of the shards, which may not exist yet.
        listings: folder in which the listings of archives in object stores are kept; None keeps none.
    """
    rule = TENTHS_OF_CLASSES
    if (shards / INDEX).is_file() and not data.group:
        with contextlib.suppress(DamagedError):  # prepare writes a damaged index again
            rule = ShardIndex.load(shards).split_rule
    layout: Layout = "audioset" if data.source == SYNTHETIC else data.layout
    return load_source(source, layout, options_of(data, listings), rule), rule


def missing_splits(data: DataConfig, source: Path | str, splits: Collection[str]) -> str:
    """Return the sentence for splits that the settings name and the data set does not have; "" if it has all."""
    named = [*data.train_splits, data.validation_split, data.test_split]
    unknown = [split for split in named if split and split not in splits]
    if not unknown:
        return ""
    return (
        f"{source} has no split {', '.join(unknown)}; it has {', '.join(sorted(splits))}. Say which to use with "
        "--data.train-splits, --data.test-split and --data.validation-split ('' for none)."
    )
