"""The results of `probe`: the files that `evaluate` writes for a bundle, one JSON with every choice, and tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ast_core.evaluation.stored_scores import write_score_rows
from ast_core.serialization import to_dict
from ast_core.storage.json_files import read_json, write_json
from pipeline.probing.probe_clips import ProbeClips, SplitUse
from pipeline.probing.probe_fit import Choice, Score
from pipeline.run_folder.layout import PROBE, RunFolder
from pipeline.scoring.results import (
    HEADLINES,
    EvaluationResult,
    format_with_interval,
    from_json_numbers,
    measure_classes,
    write_per_class,
)

LINEAR, NEAREST = "linear probe", "nearest neighbours"


@dataclass(frozen=True)
class FoldResult:
    """The result with one fold held out."""

    strength: float
    neighbours: int
    linear: dict[str, float | None]
    nearest: dict[str, float | None]


@dataclass(frozen=True)
class ProbeFolds:
    """The result of a cross-validation: each clip is tested once, by a probe that never saw its fold."""

    metric: str
    folds: dict[str, FoldResult]
    """Results by the fold that was held out."""
    mean: dict[str, float]
    """Mean of the metric over the folds, of the linear probe and of the nearest neighbours."""
    std: dict[str, float]
    """Standard deviation over the folds."""
    linear: Score
    """Metrics and intervals over all clips together."""
    nearest: Score


@dataclass(frozen=True)
class ProbeResult:
    """The content of `probe/probe.json`."""

    model: str
    """Digest of the bundle that made the embeddings."""
    member: str
    target_frames: int
    """Frames of a window of the embeddings and of the bundle."""
    bundle_digest: str
    """Digest of the bundle that was written."""
    layout: str
    """Layout of the data set."""
    loss: str
    balanced: bool
    splits: dict[str, SplitUse]
    """What became of the clips, by split."""
    reasons: dict[str, int]
    """Rejected clips by reason."""
    longer_than_window: int
    """Clips that are longer than the model's window."""
    trained_on: tuple[str, ...]
    training_clips: int
    tested_on: str
    chosen_on: str
    strength: Choice
    neighbours: Choice
    linear: Score
    nearest: Score
    folds: ProbeFolds | None = None

    def write(self, path: Path) -> None:
        """Commit the result as JSON; numbers that are not defined become null."""
        write_json(path, _without_nan(to_dict(self)))


def summarise_folds(metric: str, folds: Mapping[str, FoldResult], linear: Score, nearest: Score) -> ProbeFolds:
    """Return the result of a cross-validation."""
    scores = {
        LINEAR: [own.linear[metric] for own in folds.values()],
        NEAREST: [own.nearest[metric] for own in folds.values()],
    }
    known = {name: [math.nan if value is None else value for value in values] for name, values in scores.items()}
    mean = {name: statistics.fmean(values) for name, values in known.items()}
    std = {name: statistics.stdev(values) for name, values in known.items()}
    return ProbeFolds(metric, dict(folds), mean, std, linear, nearest)


def write_evaluation(
    run: RunFolder, clips: ProbeClips, rows_N: np.ndarray, scores_NC: np.ndarray, identity: Mapping[str, str],
    listed: int, score: Score, resamples: int,
) -> None:  # fmt: skip
    """Write scores, metrics and classes of the probe's bundle as `evaluate` does, so that the other stages find them.

    Args:
        run: folder of the run.
        clips: clips of the data set.
        rows_N: indices of the test clips.
        scores_NC: their probabilities.
        identity: bundle digest, data hash and split.
        listed: clips that the data set lists in the test split.
        score: metrics and intervals.
        resamples: resamples of the intervals.
    """
    labels = clips.manifest.labels
    per_class = measure_classes(scores_NC, clips.labels.rows(rows_N), labels)
    result = EvaluationResult(
        **identity,
        evaluated_on=clips.hash_of(rows_N),
        resamples=resamples,
        clips_listed=listed,
        clips_evaluated=len(rows_N),
        of=f"listed clips of {identity['split']}",
        metrics=score.metrics,
        intervals=score.intervals,
        per_class=per_class,
    )
    own = [clips.labels.of_clip(int(row)).tolist() for row in rows_N]
    write_score_rows(run.scores(PROBE), identity, clips.ids(rows_N), scores_NC, own)
    write_per_class(run.per_class(PROBE), per_class)
    result.write(run.result(PROBE))
    known = read_json(run.summary, "Summary of evaluate") if run.summary.is_file() else {}
    write_json(run.summary, {**known, PROBE: score.metrics})


def splits_table(uses: Mapping[str, SplitUse], splits: Sequence[str]) -> Table:
    """Return a table of what became of the clips."""
    table = Table(title="probe: clips")
    for column in ("split", "listed", "used", "rejected", "missing"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in splits:
        use = uses[split]
        table.add_row(split, *(str(count) for count in (use.listed, use.used, use.rejected, use.missing)))
    return table


def result_table(result: ProbeResult) -> Table:
    """Return a table of both methods and of chance."""
    keys = [key for key in HEADLINES if key in result.linear.metrics]
    title = f"probe: {result.linear.clips} test clips of {result.tested_on}, {result.training_clips} training clips"
    table = Table("", "chosen", *(HEADLINES[key] for key in keys), title=title)
    rows = (
        (LINEAR, f"strength {result.strength.value:g}", result.linear),
        (NEAREST, f"k {result.neighbours.value:g}", result.nearest),
    )
    for name, chosen, score in rows:
        metrics = from_json_numbers(score.metrics)
        cells = [format_with_interval(metrics[key], score.intervals.get(key)) for key in keys]
        table.add_row(name, chosen, *cells)
    chance = from_json_numbers(result.linear.metrics) | {"chance_mAUC": 0.5, "chance_d_prime": 0.0}
    table.add_row("chance", "", *(f"{chance[f'chance_{key}']:.4f}" for key in keys), style="dim")
    table.caption = f"chosen on {result.chosen_on}"
    return table


def folds_table(folds: ProbeFolds) -> Table:
    """Return a table of each fold, the mean and the interval over all clips."""
    table = Table("", *folds.folds, "mean", "std", "all clips", title=f"{folds.metric} by held-out fold")
    for name, attribute, score in ((LINEAR, "linear", folds.linear), (NEAREST, "nearest", folds.nearest)):
        own = [from_json_numbers(getattr(fold, attribute))[folds.metric] for fold in folds.folds.values()]
        value = from_json_numbers(score.metrics)[folds.metric]
        together = format_with_interval(value, score.intervals.get(folds.metric))
        table.add_row(
            name, *(f"{one:.3f}" for one in own), f"{folds.mean[name]:.4f}", f"{folds.std[name]:.4f}", together
        )
    return table


def to_metrics(result: ProbeResult) -> dict[str, float]:
    """Return the results as metrics of an MLflow run."""
    flat: dict[str, float] = {}
    for name, score in (("linear", result.linear), ("nearest", result.nearest)):
        flat |= {f"{name}.{key}": value for key, value in score.metrics.items() if value is not None}
        for key, ends in score.intervals.items():
            named = zip(("low", "high"), ends, strict=True)
            flat |= {f"{name}.{key}_{end}": value for end, value in named if value is not None}
    if result.folds is not None:
        flat |= {"linear.folds_mean": result.folds.mean[LINEAR], "nearest.folds_mean": result.folds.mean[NEAREST]}
    return {key: value for key, value in flat.items() if math.isfinite(value)}


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot hold, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
