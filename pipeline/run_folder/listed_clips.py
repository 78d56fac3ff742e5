"""Read the clips of a run's data set, with the rule for splits that its shards were made by."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from ast_core.config import DataConfig, Layout, PrepareConfig
from ast_core.dataset.clips import UnlistedFiles
from ast_core.dataset.manifest import Manifest, load_source
from ast_core.dataset.problems import EXAMPLES, make_printable
from ast_core.dataset.source_options import options_of
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from ast_core.dataset.synthetic import make_demo_audio
from ast_core.errors import DamagedError, UserError, require
from ast_core.shards.index import INDEX, ShardIndex
from pipeline.run_folder.layout import RunFolder

SYNTHETIC = "synthetic"
"""Source of the demo: recordings that the project makes."""


def find_source(data: DataConfig, run: RunFolder) -> str:
    """Return the data set's folder, manifest, glob or URI; the demo's audio is made first."""
    if data.source == SYNTHETIC:
        return str(make_demo_audio(run.synthetic_audio))
    require(bool(data.source), "data.source is empty: give --data.source the folder of the data set.")
    return data.source


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


def describe_listing(manifest: Manifest) -> list[str]:
    """Return sentences with the counts of files that are no clips, clips without a file, and clips without a label."""
    missing = [make_printable(clip.clip_id) for clip in manifest.clips if not clip.path]
    unlabelled = [make_printable(clip.clip_id) for clip in manifest.clips if not clip.labels]
    more = (
        UnlistedFiles("listed, but have no file", len(missing), tuple(missing[:EXAMPLES]), "clip"),
        UnlistedFiles(
            "without a label, so negatives of every class", len(unlabelled), tuple(unlabelled[:EXAMPLES]), "clip"
        ),
    )
    return [counts.sentence for counts in (*manifest.unlisted, *(counts for counts in more if counts.count))]


def check_missing(manifest: Manifest, data: DataConfig, limits: PrepareConfig) -> None:
    """Raise UserError if more clips of the splits that are used have no file than the settings allow."""
    limit = limits.max_missing_share
    listed = Counter(clip.split for clip in manifest.clips)
    missing = Counter(clip.split for clip in manifest.clips if not clip.path)
    for splits in dict.fromkeys([tuple(data.train_splits), (data.validation_split,), (data.test_split,)]):
        total, absent = (sum(counts[split] for split in splits) for counts in (listed, missing))
        if absent > limit * total:
            first = next(clip.clip_id for clip in manifest.clips if clip.split in splits and not clip.path)
            raise UserError(
                f"{absent} of {total} clips of {', '.join(splits)} have no file, for example {make_printable(first)}, "
                f"more than prepare.max-missing-share {limit} allows. Correct the names or the list, name the folder "
                "of the files with --data.root, or raise the limit."
            )


def find_folds(manifest: Manifest, source: str) -> tuple[str, ...]:
    """Return the names of the folds: all splits of the data set.

    Raises:
        UserError: they are fewer than three, or one is a fixed test split.
    """
    names = tuple(sorted({clip.split for clip in manifest.clips}))
    require(
        len(names) >= 3 and not {"train", "test", "eval"} & set(names),
        f"{source} has the splits {', '.join(names)}. "
        "Cross-validation needs three folds or more, and no fixed test split.",
    )
    return names
