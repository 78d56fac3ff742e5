"""Evaluate every bundle of a run on the test split, each clip exactly once, spread over Ray's workers.

ast-pipeline evaluate --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["evaluate", *sys.argv[1:]])
    sys.exit()


import numpy as np
from rich.console import Console

from ast_core.dataset.clip_list import cover, read_ids
from ast_core.errors import require
from ast_core.evaluation.stored_scores import identity_of
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import remove_all_temporary_files
from ast_core.storage.json_files import sha256_of_json, write_json
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import EvaluateSettings
from pipeline.reporting.history import read_histories
from pipeline.reporting.plots import plot_curves, plot_per_class
from pipeline.run_folder.layout import ALL_BUNDLES, ALL_EVALUATION, HISTORIES, RunFolder
from pipeline.run_folder.opened import opened
from pipeline.scoring import results as results_of
from pipeline.scoring.bundle_scores import bundle_scores, describe_bundles
from pipeline.scoring.distillation import compare_with_teacher
from pipeline.tracking import mlflow_store, runs
from pipeline.tracking.run_note import write_run_note

READS = (ALL_BUNDLES, ALL_EVALUATION, HISTORIES)
"""Files of the run that this stage reads, besides the shards of the test split."""


def evaluate(settings: EvaluateSettings) -> dict[str, dict[str, float]]:
    """Measure the bundles of a run, draw pictures, print and log the results.

    Returns:
        The metrics of `ast_core.evaluation.metrics.evaluate_scores` by bundle.

    Raises:
        UserError: as `measure_bundles`, or the MLflow experiment was deleted.
    """
    with opened(settings, READS, [settings.data.test_split], exclusive="evaluate") as run:
        runs.open_experiment(settings.tracking, settings.experiment)
        test = select_clips(settings, run)
        results = measure_bundles(settings, run, test)
        main = run.main_bundle()
        _draw(settings, run, test.output, main, results[main])
        remove_all_temporary_files(test.output)  # the whole folder is logged
        _log(settings, run, test, results)
        Console().print(results_of.bundles_table(results))
        Console().print(results_of.classes_table(main, results[main]))
        if settings.distil.teacher and settings.clip_list is None:
            Console().print(compare_with_teacher(settings, test.reader, results))
    if test.absent:
        Console().print(f"{len(test.absent)} ids of the list are not in the split: {', '.join(test.absent[:5])} ...")
    return {name: results_of.from_json_numbers(result.metrics) for name, result in results.items()}


@dataclass(frozen=True)
class TestClips:
    """The clips that a test counts, and where its results go."""

    reader: ShardReader
    """All clips of the test split."""
    indices_N: np.ndarray
    """Those that count."""
    listed: int
    """Clips that the data set or the clip list names."""
    of: str
    """What `listed` counts, as tables say it."""
    absent: tuple[str, ...]
    """Ids of the clip list that are not in the split."""
    output: Path


def select_clips(settings: EvaluateSettings, run: RunFolder) -> TestClips:
    """Open the test split and select the clips that count: all of them, or those of `--clip-list`.

    Raises:
        UserError: the split does not exist or is empty, or the list names no clip of it.
    """
    split = settings.data.test_split
    reader = ShardReader(run.shards, [split])
    require(len(reader) > 0, f"The split {split} in {run.shards} holds no clip to test on.")
    if settings.clip_list is None:
        listed = reader.index.splits[split].listed
        return TestClips(reader, np.arange(len(reader)), listed, f"listed clips of {split}", (), run.evaluation)
    coverage = cover(read_ids(settings.clip_list), reader.clip_ids)
    require(
        len(coverage.indices_N) > 0,
        f"The split {split} of {run.shards} has none of the {coverage.listed} clips of {settings.clip_list}: "
        f"the list has ids such as {coverage.absent[:1]}, the split such as {reader.clip_ids[0]}.",
    )
    output = run.evaluation / settings.clip_list.stem
    of = f"clips of {settings.clip_list.name}"
    return TestClips(reader, coverage.indices_N, coverage.listed, of, coverage.absent, output)


def measure_bundles(
    settings: EvaluateSettings, run: RunFolder, test: TestClips
) -> dict[str, results_of.EvaluationResult]:
    """Score the bundles, and write scores and metrics to `evaluation/`, or to `evaluation/LIST/` with a clip list.

    Returns:
        The content of `evaluation/NAME.json`, by bundle; ensembles last.

    Raises:
        UserError: the run has no bundle, or one of other labels or another front end.
    """
    bundles = describe_bundles(run.bundles, test.reader)
    scores = bundle_scores(settings, bundles, test.reader, run.evaluation)
    results = {}
    for name, scores_NC in scores.items():
        identity = identity_of(bundles[name].digest, test.reader)
        results[name] = _result(test, identity, name, scores_NC, settings.bootstrap)
    write_json(test.output / run.summary.name, {name: result.metrics for name, result in results.items()})
    return results


def _result(
    test: TestClips, identity: dict[str, str], name: str, scores_NC: np.ndarray, resamples: int
) -> results_of.EvaluationResult:
    """Return a bundle's metrics; those on disk if scores, clips and resamples are the same."""
    path, reader = test.output / f"{name}.json", test.reader
    evaluated_on = _hash_of_clips(test)
    known = results_of.EvaluationResult.load_if_same(
        path, {**identity, "evaluated_on": evaluated_on, "resamples": resamples}
    )
    if known is not None:
        return known
    labels, single = reader.index.labels, reader.index.single_label
    chosen = (scores_NC[test.indices_N], reader.labels.rows(test.indices_N))
    result = results_of.EvaluationResult(
        bundle_digest=identity["bundle_digest"],
        data_hash=identity["data_hash"],
        split=identity["split"],
        evaluated_on=evaluated_on,
        resamples=resamples,
        clips_listed=test.listed,
        clips_evaluated=len(test.indices_N),
        of=test.of,
        metrics=results_of.measure_metrics(*chosen, single),
        intervals=results_of.measure_intervals(*chosen, single, resamples),
        per_class=results_of.measure_classes(*chosen, labels),
    )
    results_of.write_per_class(test.output / f"{name}-per-class.csv", result.per_class)
    result.write(path)
    return result


def _hash_of_clips(test: TestClips) -> str:
    """Return a hash of the clips that count and their labels: results with the same hash can be compared."""
    reader = test.reader
    labels = [reader.labels.of_clip(index).tolist() for index in test.indices_N]
    return sha256_of_json([[reader.clip_ids[index] for index in test.indices_N], labels, list(reader.index.labels)])


def _draw(
    settings: EvaluateSettings, run: RunFolder, output: Path, name: str, result: results_of.EvaluationResult
) -> None:
    precision = results_of.from_json_numbers({label: row.ap for label, row in result.per_class.items()})
    chance = results_of.from_json_numbers(result.metrics)["chance_mAP"]
    plot_per_class(output / "per_class_ap.png", f"{settings.experiment}, {name}: average precision", precision, chance)
    histories = read_histories(run.path)
    if histories:
        plot_curves(output / "learning_curves.png", histories)


def _log(
    settings: EvaluateSettings, run: RunFolder, test: TestClips, results: dict[str, results_of.EvaluationResult]
) -> None:
    mlflow_store.open_store(settings.tracking)
    bundles = sha256_of_json({name: result.bundle_digest for name, result in results.items()})
    tags = {"stage": "evaluate", "run_dir": str(run.path), "data_hash": test.reader.index.data_hash}
    tags["bundles"] = bundles
    params = {"shards": settings.shards, "split": settings.data.test_split, "clip_list": settings.clip_list or ""}
    flat: dict[str, float] = {}
    for name, result in results.items():
        flat |= {f"{name}.{key}": value for key, value in results_of.from_json_numbers(result.metrics).items()}
        for key, ends in result.intervals.items():
            ends_by_name = zip(("low", "high"), ends, strict=True)
            flat |= {f"{name}.{key}_{end}": value for end, value in ends_by_name if value is not None}
    with runs.start_run(settings.experiment, f"{settings.experiment}-evaluate", params, tags) as run_id:
        write_run_note(run.evaluation, run_id)
        runs.log_metrics(run_id, flat)
        runs.log_artifacts(run_id, test.output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: evaluate(parse_settings(EvaluateSettings, __doc__, argv)))
