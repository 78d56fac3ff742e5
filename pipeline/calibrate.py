"""Fit each bundle's calibration and thresholds on the validation split; `predict --decide` uses them.

ast-pipeline calibrate --recipe speech_commands --run-dir work/speech_commands
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["calibrate", *sys.argv[1:]])
    sys.exit()


import numpy as np
from rich.console import Console
from rich.table import Table

from ast_core.errors import require
from ast_core.evaluation.calibration import calibration_error, f1_scores, fit_decisions
from ast_core.evaluation.stored_scores import identity_of
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import remove_all_temporary_files
from ast_core.storage.json_files import write_json
from ast_core.weights.decisions import Decisions
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import CalibrateSettings
from pipeline.run_folder.layout import ALL_BUNDLES, ALL_CALIBRATION, ALL_EVALUATION
from pipeline.run_folder.opened import opened
from pipeline.scoring.bundle_scores import DescribedBundle, bundle_scores, describe_bundles
from pipeline.scoring.results import to_json_numbers

Effect = dict[str, float]


def calibrate(settings: CalibrateSettings) -> dict[str, Decisions]:
    """Write `decisions.json` into every bundle of a run, and show on the test split what it does.

    Returns:
        The decisions by bundle.

    Raises:
        UserError: no validation split, no clip in it, or no bundle.
    """
    split = settings.data.validation_split
    require(
        bool(split),
        "There is no data.validation-split to fit on: thresholds chosen on the test split would look better than they "
        "are. Name one.",
    )
    reads, splits = [ALL_BUNDLES, ALL_EVALUATION, ALL_CALIBRATION], [split, settings.data.test_split]
    with opened(settings, reads, splits, exclusive="calibrate") as run:
        validation, test = (ShardReader(run.shards, [name]) for name in splits)
        require(len(validation) > 0, f"The split {split} in {run.shards} holds no clip to fit on.")
        bundles = describe_bundles(run.bundles, validation)
        scores = bundle_scores(settings, bundles, validation, run.calibration)
        tested = bundle_scores(settings, bundles, test, run.evaluation)
        decisions, effects = {}, {}
        for name, described in bundles.items():
            fitted = _fit(described, scores[name], validation)
            decisions[name], effects[name] = fitted, _effect(fitted, tested[name], test.labels_NC)
        _write_effects(run.calibration / run.summary.name, effects)
        remove_all_temporary_files(run.calibration)
    Console().print(_table(effects, f"fitted on {len(validation)} clips of {split}, seen on {len(test)} of the test"))
    return decisions


def _fit(described: DescribedBundle, scores_NC: np.ndarray, validation: ShardReader) -> Decisions:
    """Fit a bundle's decisions on the validation clips and write them into the bundle."""
    fitted_on = {key: value for key, value in identity_of("", validation).items() if value}
    single = validation.index.single_label
    fitted = fit_decisions(scores_NC, validation.labels_NC, single, described.digest, fitted_on)
    fitted.write(described.folder)
    return fitted


def _effect(fitted: Decisions, scores_NC: np.ndarray, labels_NC: np.ndarray) -> Effect:
    single = fitted.one_label
    effect = {
        "calibration_error": calibration_error(scores_NC, labels_NC, single),
        "calibration_error_fitted": calibration_error(fitted.calibrated(scores_NC), labels_NC, single),
    }
    if not single:
        effect["micro_f1"], effect["macro_f1"] = f1_scores(scores_NC >= 0.5, labels_NC)
        effect["micro_f1_fitted"], effect["macro_f1_fitted"] = f1_scores(fitted.decide(scores_NC), labels_NC)
    return effect


def _write_effects(path: Path, effects: dict[str, Effect]) -> None:
    write_json(path, {name: to_json_numbers(effect) for name, effect in effects.items()})


def _table(effects: dict[str, Effect], title: str) -> Table:
    """Return a table of each bundle's figures before and after the fit."""
    table = Table("bundle", title=f"calibrate: {title}")
    names = {
        "calibration_error": "calibration error", "micro_f1": "micro F1, from 0.5 to fitted",
        "macro_f1": "macro F1, from 0.5 to fitted",
    }  # fmt: skip
    shown = [key for key in names if key in next(iter(effects.values()))]
    for key in shown:
        table.add_column(names[key], justify="right")
    for name, effect in effects.items():
        table.add_row(name, *(f"{effect[key]:.3f} to {effect[f'{key}_fitted']:.3f}" for key in shown))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: calibrate(parse_settings(CalibrateSettings, __doc__, argv)))
