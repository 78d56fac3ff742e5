"""Ensemble-S and Ensemble-M: members trained as the trials of a study, then only arithmetic on their stored scores.

python tune/ensemble.py --recipe audioset_full --data.source AUDIOSET
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rich.table
from rich.console import Console

from ast_core.errors import UserError
from ast_core.evaluation.metrics import evaluate_scores, headline_metric
from ast_core.evaluation.stored_scores import identity_of, read_scores, write_scores
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import atomic_write
from ast_core.storage.json_files import read_hashed_json
from ast_core.weights.bundle import DESCRIPTION, read_members, write_bundle
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
from tune.search import SearchSettings, search
from tune.trial import Trial

SINGLE, MULTI = "ensemble-s", "ensemble-m"
"""Members of the study's first variant, and all."""


@dataclass(frozen=True)
class EnsembleSettings(SearchSettings):
    """Settings of `ensemble`."""

    study: str = "ensemble"
    """Members: the paper's (16 x 16 patches at strides 10, 12, 14, 16), or a TOML file's: its first variant with
    `--repeats` seeds is Ensemble-S, all its variants are Ensemble-M."""
    repeats: int = 3
    """Seeds of the first variant; variants of the paper's study have one each but for it."""
    subsets: bool = False
    """Also score every subset of two members and more, to `report/subsets.csv`."""


def ensemble(settings: EnsembleSettings) -> dict[str, dict[str, float]]:
    """Train what members are missing; evaluate and register each member, S and M as bundles of the study's folder.

    Returns:
        Metrics by bundle.

    Raises:
        UserError: as `search`, or members that were not tested on the same clips.
    """
    _, trials = search(settings)
    reads = trial_files(settings.study_dir.name, [ALL_BUNDLES, ALL_EVALUATION])
    sync.download_inputs(settings, [settings.data.test_split], reads)
    reader = ShardReader(settings.shards, [settings.data.test_split])
    scores = {_name(trial): _collect(settings, trial, reader) for trial in trials}
    first = trials[0].variant
    groups = {SINGLE: [t for t in trials if t.variant == first], MULTI: list(trials)}
    for name, members in groups.items():
        if len(members) > 1 and (name == SINGLE or len(members) > len(groups[SINGLE])):
            _join(settings, name, members, reader, [scores[_name(trial)] for trial in members])
    results = evaluate(_of_study(settings, EvaluateSettings))
    if settings.data.validation_split:
        calibrate(_of_study(settings, CalibrateSettings))
    _show(results, list(scores))
    if settings.subsets:
        _write_subsets(settings.study_dir / "report" / "subsets.csv", scores, reader)
    register(_of_study(settings, RegisterSettings))
    report(_of_study(settings, ReportSettings))
    return results


def _name(trial: Trial) -> str:
    return f"{trial.variant}-seed-{trial.seed}"


def _folder(settings: EnsembleSettings) -> RunFolder:
    """Return the study's folder, which holds bundles and results as a run's does."""
    return RunFolder(settings.study_dir, settings.shards)


def _run_of(trial: Trial) -> RunFolder:
    return RunFolder.of(trial.settings)


def _of_study(settings: EnsembleSettings, kind: type[SettingsT]) -> SettingsT:
    """A stage's settings, for the study's folder."""
    return dataclasses.replace(select_settings(settings, kind), run_dir=settings.study_dir)  # type: ignore[type-var]


def _collect(settings: EnsembleSettings, trial: Trial, reader: ShardReader) -> np.ndarray:
    """Copy a trial's standing bundle, and that of its epochs if it has one, beside the others; its scores [N, C]."""
    own = f"seed-{trial.seed}"
    if _run_of(trial).bundle(f"{own}-epochs").is_dir():
        _copy(settings, trial, f"{own}-epochs", f"{_name(trial)}-epochs", reader)
    return _copy(settings, trial, own, _name(trial), reader)


def _copy(settings: EnsembleSettings, trial: Trial, bundle: str, name: str, reader: ShardReader) -> np.ndarray:
    source = _run_of(trial).bundle(bundle)
    description = read_hashed_json(source / DESCRIPTION, "Bundle")
    parts = [
        (name if len(description["members"]) == 1 else part, weights, identity)
        for part, weights, identity in read_members(source)
    ]
    target = _folder(settings).bundle(name)
    bundle_digest = write_bundle(target, parts, reader.index.single_label, description["facts"])
    stored = _run_of(trial).scores(bundle)
    scores_NC = read_scores(stored, identity_of(description["digest"], reader))
    if scores_NC is None:
        raise UserError(f"{stored} is not of {source} and the split {settings.data.test_split}: remove it.")
    return _keep(settings, name, bundle_digest, scores_NC, reader)


def _join(
    settings: EnsembleSettings, name: str, trials: Sequence[Trial], reader: ShardReader, scores: Sequence[np.ndarray]
) -> None:
    bundles = [_folder(settings).bundle(_name(trial)) for trial in trials]
    described = [read_hashed_json(bundle / DESCRIPTION, "Bundle")["facts"] for bundle in bundles]
    facts = {
        "recipe": settings.experiment,
        "data_hash": reader.index.data_hash,
        "seeds": sorted({trial.seed for trial in trials}),
        "made_of": f"mean of {len(trials)} members' probabilities",
        "role": "ensemble",
        "train_runs": [run for own in described for run in own.get("train_runs", [])],
    }
    members = [member for bundle in bundles for member in read_members(bundle)]
    bundle_digest = write_bundle(_folder(settings).bundle(name), members, reader.index.single_label, facts)
    _keep(settings, name, bundle_digest, mean_probabilities(scores), reader)


def _keep(
    settings: EnsembleSettings, name: str, bundle_digest: str, scores_NC: np.ndarray, reader: ShardReader
) -> np.ndarray:
    """Store scores where `evaluate` finds them: it then computes nothing again."""
    path = _folder(settings).scores(name)
    write_scores(path, identity_of(bundle_digest, reader), scores_NC, reader)
    return scores_NC


def _show(results: dict[str, dict[str, float]], members: Sequence[str]) -> None:
    """Gains over the members' mean, and over the best of them; the mean of epochs' predictions over its own member."""
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
    lines = ["members,metric,value,names"]
    single = reader.index.single_label
    key = headline_metric(single)
    for size in range(2, len(scores) + 1):
        for names in itertools.combinations(scores, size):
            mean_NC = mean_probabilities([scores[name] for name in names])
            value = evaluate_scores(mean_NC, reader.labels_NC, single)[key]
            lines.append(f"{size},{key},{value:.6f},{' '.join(names)}")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run it as a program."""
    run_stage(lambda: ensemble(parse_settings(EnsembleSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from tune.ensemble import main

    main()
