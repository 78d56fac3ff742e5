"""Ensemble-S and Ensemble-M, made of the trials of a study by averaging their stored scores.

ast-pipeline ensemble --recipe audioset_full --data.source AUDIOSET
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["ensemble", *sys.argv[1:]])
    sys.exit()


import numpy as np
import rich.table
from rich.console import Console

from ast_core.errors import UserError
from ast_core.evaluation.metrics import evaluate_scores, headline_metric
from ast_core.evaluation.stored_scores import identity_of, read_scores, write_scores
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import atomic_write
from ast_core.weights.bundle import read_members, write_bundle
from ast_core.weights.bundle_description import BundleFacts, read_description
from ast_core.weights.ensemble_mean import mean_probabilities
from pipeline.calibrate import calibrate
from pipeline.cli.command_line import SettingsT, parse_settings, select_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import CalibrateSettings, EvaluateSettings, RegisterSettings, ReportSettings
from pipeline.evaluate import evaluate
from pipeline.register import register
from pipeline.report import report
from pipeline.run_folder import sync
from pipeline.run_folder.layout import ALL_BUNDLES, ALL_EVALUATION, RunFolder, trial_files
from tune.search import search
from tune.settings import EnsembleSettings
from tune.trial import Trial

SINGLE, MULTI = "ensemble-s", "ensemble-m"
"""Bundle names: the members of the first variant (S), and the members of all variants (M)."""


def ensemble(settings: EnsembleSettings) -> dict[str, dict[str, float]]:
    """Train the missing members, then evaluate and register the members, Ensemble-S and Ensemble-M.

    All of them are bundles in the study's folder.

    Returns:
        Metrics by bundle.

    Raises:
        UserError: `search` failed, or the members were not tested on the same clips.
    """
    _, trials = search(settings)
    reads = trial_files(settings.study_dir.name, [ALL_BUNDLES, ALL_EVALUATION])
    sync.download_inputs(settings, [settings.data.test_split], reads)
    reader = ShardReader(settings.shards, [settings.data.test_split])
    scores = {_bundle_name(trial): _copy_bundles(settings, trial, reader) for trial in trials}
    first = trials[0].variant
    groups = {SINGLE: [t for t in trials if t.variant == first], MULTI: list(trials)}
    for name, members in groups.items():
        if len(members) > 1 and (name == SINGLE or len(members) > len(groups[SINGLE])):
            _write_ensemble(settings, name, members, reader, [scores[_bundle_name(trial)] for trial in members])
    results = evaluate(_select_study_settings(settings, EvaluateSettings))
    if settings.data.validation_split:
        calibrate(_select_study_settings(settings, CalibrateSettings))
    _print_gains(results, list(scores))
    if settings.subsets:
        _write_subsets(settings.study_dir / "report" / "subsets.csv", scores, reader)
    register(_select_study_settings(settings, RegisterSettings))
    report(_select_study_settings(settings, ReportSettings))
    return results


def _bundle_name(trial: Trial) -> str:
    """Return the bundle name of a trial in the study's folder."""
    return f"{trial.variant}-seed-{trial.seed}"


def _study_folder(settings: EnsembleSettings) -> RunFolder:
    """Return the study's folder, which holds bundles and results as a run's does."""
    return RunFolder(settings.study_dir, settings.shards)


def _trial_run(trial: Trial) -> RunFolder:
    return RunFolder.of(trial.settings)


def _select_study_settings(settings: EnsembleSettings, kind: type[SettingsT]) -> SettingsT:
    """Return the settings of a stage that runs on the study's folder."""
    return dataclasses.replace(select_settings(settings, kind), run_dir=settings.study_dir)  # type: ignore[type-var]


def _copy_bundles(settings: EnsembleSettings, trial: Trial, reader: ShardReader) -> np.ndarray:
    """Copy a trial's bundle, and the one of its epochs if it exists, to the study's folder.

    Returns:
        Scores [N, C] of the trial's bundle.
    """
    own = f"seed-{trial.seed}"
    if _trial_run(trial).bundle(f"{own}-epochs").is_dir():
        _copy_bundle(settings, trial, f"{own}-epochs", f"{_bundle_name(trial)}-epochs", reader)
    return _copy_bundle(settings, trial, own, _bundle_name(trial), reader)


def _copy_bundle(settings: EnsembleSettings, trial: Trial, bundle: str, name: str, reader: ShardReader) -> np.ndarray:
    """Copy one bundle of a trial and its scores under a new name, and return the scores [N, C]."""
    source = _trial_run(trial).bundle(bundle)
    description = read_description(source)
    parts = [
        (name if len(description.members) == 1 else part, weights, identity)
        for part, weights, identity in read_members(source)
    ]
    target = _study_folder(settings).bundle(name)
    bundle_digest = write_bundle(target, parts, reader.index.single_label, description.facts)
    stored = _trial_run(trial).scores(bundle)
    scores_NC = read_scores(stored, identity_of(description.digest, reader))
    if scores_NC is None:
        raise UserError(
            f"{stored} does not hold scores of {source} on the split {settings.data.test_split}. "
            "Delete it and run the same command again."
        )
    return _store_scores(settings, name, bundle_digest, scores_NC, reader)


def _write_ensemble(
    settings: EnsembleSettings, name: str, trials: Sequence[Trial], reader: ShardReader, scores: Sequence[np.ndarray]
) -> None:
    """Write a bundle that averages these trials' members, and its scores."""
    bundles = [_study_folder(settings).bundle(_bundle_name(trial)) for trial in trials]
    facts = BundleFacts(
        recipe=settings.experiment,
        data_hash=reader.index.data_hash,
        seeds=tuple(sorted({trial.seed for trial in trials})),
        made_of=f"mean of {len(trials)} members' probabilities",
        role="ensemble",
        train_runs=tuple(run for bundle in bundles for run in read_description(bundle).facts.train_runs),
    )
    members = [member for bundle in bundles for member in read_members(bundle)]
    bundle_digest = write_bundle(_study_folder(settings).bundle(name), members, reader.index.single_label, facts)
    _store_scores(settings, name, bundle_digest, mean_probabilities(scores), reader)


def _store_scores(
    settings: EnsembleSettings, name: str, bundle_digest: str, scores_NC: np.ndarray, reader: ShardReader
) -> np.ndarray:
    """Store scores where `evaluate` finds them, so that it does not compute them again."""
    path = _study_folder(settings).scores(name)
    write_scores(path, identity_of(bundle_digest, reader), scores_NC, reader)
    return scores_NC


def _print_gains(results: dict[str, dict[str, float]], members: Sequence[str]) -> None:
    """Print what each ensemble gains over the mean of its members and over the best one.

    A mean over epochs is compared with its own member.
    """
    key = headline_metric("accuracy" in results[members[0]])
    groups = {SINGLE: [m for m in members if m.rpartition("-seed-")[0] == members[0].rpartition("-seed-")[0]]}
    groups |= {MULTI: list(members)} | {f"{member}-epochs": [member] for member in members}
    table = rich.table.Table("ensemble", key, "over its members' mean", "over the best", title="gain")
    for name, own in groups.items():
        if name in results:
            value, single = results[name][key], [results[member][key] for member in own]
            gains = (value - sum(single) / len(single), value - max(single))
            table.add_row(name, f"{value:.4f}", *(f"{gain:+.4f}" for gain in gains))
    Console().print(table)


def _write_subsets(path: Path, scores: dict[str, np.ndarray], reader: ShardReader) -> None:
    """Write the metric of every subset of two or more members as CSV."""
    lines = ["members,metric,value,names"]
    labels_NC, single = reader.labels_NC, reader.index.single_label
    key = headline_metric(single)
    for size in range(2, len(scores) + 1):
        for names in itertools.combinations(scores, size):
            mean_NC = mean_probabilities([scores[name] for name in names])
            value = evaluate_scores(mean_NC, labels_NC, single)[key]
            lines.append(f"{size},{key},{value:.6f},{' '.join(names)}")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `ensemble` as a program."""
    run_stage(lambda: ensemble(parse_settings(EnsembleSettings, __doc__, argv)))
