"""Evaluate every bundle of a run on the test split, each clip exactly once, spread over Ray's workers.

python pipeline/evaluate.py --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ast_core.dataset.clip_list import cover, read_ids
from ast_core.errors import require
from ast_core.evaluation.stored_scores import identity_of
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import remove_all_temporary_files
from ast_core.storage.json_files import read_json, sha256_of_json, write_json
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import EvaluateSettings
from pipeline.reporting.history import read_histories
from pipeline.reporting.plots import plot_curves, plot_per_class
from pipeline.run_folder import folder_lock, sync
from pipeline.scoring import results as results_of
from pipeline.scoring.bundle_scores import bundle_scores, describe_bundles
from pipeline.scoring.distillation import compare_with_teacher
from pipeline.tracking import mlflow_store, runs
from pipeline.tracking.run_note import write_run_note


def evaluate(settings: EvaluateSettings) -> dict[str, dict[str, float]]:
    """Measure the bundles of a run, draw pictures, show and log it all.

    Returns:
        The metrics of `ast_core.evaluation.metrics.evaluate_scores` by bundle.

    Raises:
        UserError: as `measure`.
    """
    reader = _reader(settings)
    with folder_lock.lock_folder(settings.run_dir / "bundles", "evaluated"):
        return _evaluated(settings, reader)


def _evaluated(settings: EvaluateSettings, reader: ShardReader) -> dict[str, dict[str, float]]:
    test = _test(settings, reader)
    results = measure(settings)
    _draw(settings, test.output, results)
    remove_all_temporary_files(test.output)  # which is logged as it is
    _log(settings, test, results, reader.index.data_hash)
    Console().print(results_of.bundles_table(results))
    shown = _headline(results)
    Console().print(results_of.classes_table(shown, results[shown]))
    if settings.distil.teacher and settings.clip_list is None:
        Console().print(compare_with_teacher(settings, reader, results))
    if test.absent:
        Console().print(f"{len(test.absent)} ids of the list are not in the split: {', '.join(test.absent[:5])} ...")
    return {name: results_of.from_json_numbers(result["metrics"]) for name, result in results.items()}


def measure(settings: EvaluateSettings) -> dict[str, results_of.Result]:
    """Score the bundles and write scores and metrics to `evaluation/`.

    With a list of clips, metrics are of these alone and go to `evaluation/LIST/`.

    Returns:
        What `evaluation/NAME.json` holds, by bundle; ensembles last.

    Raises:
        UserError: no bundle, no such split or no clip in it, a bundle of other labels or another front end, or a list
            that names no clip of the split.
    """
    reader = _reader(settings)
    bundles = describe_bundles(settings.run_dir / "bundles", reader)
    identities = {name: identity_of(described.digest, reader) for name, described in bundles.items()}
    scores = bundle_scores(settings, bundles, reader, settings.run_dir / "evaluation")
    test = _test(settings, reader)
    results = {name: _result(test, identities[name], name, scores_NC, reader) for name, scores_NC in scores.items()}
    write_json(test.output / "summary.json", {name: result["metrics"] for name, result in results.items()})
    return results


def _reader(settings: EvaluateSettings) -> ShardReader:
    split = settings.data.test_split
    sync.download_inputs(settings, [split], ["bundles/*", "evaluation/*", "members/*/metrics.jsonl"])
    reader = ShardReader(settings.shards, [split])
    require(len(reader) > 0, f"The split {split} in {settings.shards} holds no clip to test on.")
    return reader


@dataclass(frozen=True)
class _Test:
    """Which clips count, and where the results go."""

    output: Path
    indices_N: np.ndarray
    listed: int
    of: str
    absent: tuple[str, ...]
    resamples: int


def _test(settings: EvaluateSettings, reader: ShardReader) -> _Test:
    split, output = settings.data.test_split, settings.run_dir / "evaluation"
    if settings.clip_list is None:
        listed = reader.index.splits[split].listed
        return _Test(output, np.arange(len(reader)), listed, f"listed clips of {split}", (), settings.bootstrap)
    coverage = cover(read_ids(settings.clip_list), reader.clip_ids)
    require(
        len(coverage.indices_N) > 0,
        f"None of the {coverage.listed} clips of {settings.clip_list} is in the split {split} of {settings.shards}: "
        f"the list has ids such as {coverage.absent[:1]}, the split such as {reader.clip_ids[0]}.",
    )
    of = f"clips of {settings.clip_list.name}"
    output /= settings.clip_list.stem
    return _Test(output, coverage.indices_N, coverage.listed, of, coverage.absent, settings.bootstrap)


def _result(
    test: _Test, identity: dict[str, str], name: str, scores_NC: np.ndarray, reader: ShardReader
) -> dict[str, Any]:
    """A bundle's metrics on the clips that count; those on disk if they are of the same scores, clips and resamples."""
    path = test.output / f"{name}.json"
    facts = {**identity, "evaluated_on": _which(test, reader), "resamples": test.resamples}
    if path.is_file():
        known: dict[str, Any] = read_json(path, "Evaluation")
        if all(known.get(key) == value for key, value in facts.items()):
            return known
    labels, single = reader.index.labels, reader.index.single_label
    chosen = (scores_NC[test.indices_N], reader.labels_NC[test.indices_N])
    counts = {"clips_listed": test.listed, "clips_evaluated": len(test.indices_N), "of": test.of}
    result = {**facts, **counts, **results_of.measure(*chosen, labels, single, test.resamples)}
    results_of.write_per_class(test.output / f"{name}-per-class.csv", result["per_class"])
    write_json(path, result)
    return result


def _which(test: _Test, reader: ShardReader) -> str:
    """A hash of the clips that count and their labels: results on the same ones can be compared, however prepared."""
    labels = [np.flatnonzero(reader.labels_NC[index]).tolist() for index in test.indices_N]
    return sha256_of_json([[reader.clip_ids[index] for index in test.indices_N], labels, list(reader.index.labels)])


def _headline(results: dict[str, results_of.Result]) -> str:
    """The bundle that stands for the run: the largest ensemble, else the only member (its last epoch comes after)."""
    last = list(results)[-1]
    return last if last.startswith("ensemble") else next(iter(results))


def _draw(settings: EvaluateSettings, output: Path, results: dict[str, results_of.Result]) -> None:
    name = _headline(results)
    result = results[name]
    precision = results_of.from_json_numbers({label: row["ap"] for label, row in result["per_class"].items()})
    chance = results_of.from_json_numbers(result["metrics"])["chance_mAP"]
    plot_per_class(output / "per_class_ap.png", f"{settings.experiment}, {name}: average precision", precision, chance)
    histories = read_histories(settings.run_dir)
    if histories:
        plot_curves(output / "learning_curves.png", histories)


def _log(settings: EvaluateSettings, test: _Test, results: dict[str, results_of.Result], data_hash: str) -> None:
    mlflow_store.open_store(settings.tracking)
    bundles = sha256_of_json({name: result["bundle_digest"] for name, result in results.items()})
    tags = {"stage": "evaluate", "run_dir": str(settings.run_dir), "data_hash": data_hash, "bundles": bundles}
    params = {"shards": settings.shards, "split": settings.data.test_split, "clip_list": settings.clip_list or ""}
    flat: dict[str, float] = {}
    for name, result in results.items():
        flat |= {f"{name}.{key}": value for key, value in results_of.from_json_numbers(result["metrics"]).items()}
        for key, ends in result["intervals"].items():
            ends_by_name = zip(("low", "high"), ends, strict=True)
            flat |= {f"{name}.{key}_{end}": value for end, value in ends_by_name if value is not None}
    with runs.start_run(settings.experiment, f"{settings.experiment}-evaluate", params, tags) as run_id:
        write_run_note(settings.run_dir / "evaluation", run_id)
        runs.log_metrics(run_id, flat)
        runs.log_artifacts(run_id, test.output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: evaluate(parse_settings(EvaluateSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.evaluate import main

    main()
