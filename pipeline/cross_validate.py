"""Cross-validate, as on ESC-50's five folds: hold each fold out once, and choose the epoch in three ways.

ast-pipeline cross-validate --recipe esc50 --data.source ESC-50
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["cross-validate", *sys.argv[1:]])
    sys.exit()


from rich.console import Console
from rich.table import Table

from ast_core.errors import require
from ast_core.evaluation.metrics import headline_metric
from ast_core.serialization import to_dict
from ast_core.storage.json_files import write_json
from ast_core.training.member_folder import MemberFolder
from pipeline.cli.command_line import parse_settings, select_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import CrossValidateSettings, PrepareSettings, TrainSettings
from pipeline.prepare import prepare
from pipeline.ray_runtime import connection
from pipeline.reporting.history import read_history
from pipeline.run_folder import sync
from pipeline.run_folder.layout import RunFolder
from pipeline.run_folder.listed_clips import find_folds, list_clips
from pipeline.run_folder.pinned_models import pin_initial_weights
from pipeline.tracking import mlflow_store, runs
from pipeline.train import MemberTrainings

WAYS = {
    "published": "one epoch for all folds, the best on the test folds, as the published code does; too optimistic",
    "nested": "for each fold, the epoch that is best on the other folds",
    "last": "the last epoch",
}
"""Ways to quote a cross-validation."""


@dataclass(frozen=True)
class FoldChoice:
    """One way to choose the epoch of each fold, and the scores at these epochs."""

    epochs: dict[str, int]
    """Chosen epoch by fold, the first epoch is 1."""
    scores: dict[str, float]
    """Score at the chosen epoch, by fold."""
    mean: float
    """Mean of the scores over the folds."""
    std: float
    """Standard deviation of the scores over the folds."""


@dataclass(frozen=True)
class CrossValidation:
    """The content of `folds.json`: the scores of all folds and three ways to choose the epochs."""

    metric: str
    seed: int
    curves: dict[str, list[float]]
    """Score of each epoch, by fold."""
    published: FoldChoice
    nested: FoldChoice
    last: FoldChoice

    @property
    def choices(self) -> dict[str, FoldChoice]:
        """The choices by the names in `WAYS`."""
        return {"published": self.published, "nested": self.nested, "last": self.last}


def cross_validate(settings: CrossValidateSettings) -> CrossValidation:
    """Prepare once, train once for each fold, write and log the results of all folds.

    Returns:
        The score of each epoch, by fold, and the three choices of `choose`.

    Raises:
        UserError: the data set has fewer than three folds, the recipe stops early, or a stage fails.
    """
    patience = settings.optim.early_stopping_epochs
    require(
        not patience,
        f"optim.early-stopping-epochs is {patience}, and cross-validation has no validation split that may choose the "
        "last epoch. Set it to 0.",
    )
    run, names = RunFolder.of(settings), _folds(settings)
    runs.open_experiment(settings.tracking, settings.experiment)
    sync.download_inputs(settings)
    settings = pin_initial_weights(settings)
    whole = dataclasses.replace(settings.data, train_splits=names[1:], validation_split="", test_split=names[0])
    with connection.connect(settings.address, settings.workers, settings.gpus):
        index = prepare(select_settings(dataclasses.replace(settings, data=whole), PrepareSettings))
        key = f"test_{headline_metric(index.single_label)}"
        members = {}
        with MemberTrainings() as trainings:
            for held_out in names:
                Console().rule(f"{held_out} held out")
                others = tuple(name for name in names if name != held_out)
                data = dataclasses.replace(whole, train_splits=others, test_split=held_out)
                member = dataclasses.replace(
                    select_settings(settings, TrainSettings), data=data, run_dir=run.fold(held_out)
                )
                members[held_out] = trainings.train(held_out, member)
        curves = {
            held_out: [float(row[key]) for row in read_history(MemberFolder(folder).history)]
            for held_out, folder in members.items()
            if folder is not None
        }
    choices = choose(curves)
    result = CrossValidation(
        metric=key.removeprefix("test_"),
        seed=settings.seed,
        curves=curves,
        published=choices["published"],
        nested=choices["nested"],
        last=choices["last"],
    )
    output = run.folds_result(settings.seed)
    write_json(output / "folds.json", to_dict(result))
    _log(settings, result, output)
    Console().print(_table(result))
    Console().print(f"Wrote {output / 'folds.json'}", soft_wrap=True)
    return result


def _folds(settings: CrossValidateSettings) -> tuple[str, ...]:
    """Return the names of the folds: all splits of the data set."""
    require(bool(settings.data.source), "data.source is empty: give --data.source the folder of the data set.")
    listings = RunFolder.of(settings).archive_listings
    manifest, _ = list_clips(settings.data, settings.data.source, settings.shards, listings)
    return find_folds(manifest, settings.data.source)


def choose(curves: dict[str, list[float]]) -> dict[str, FoldChoice]:
    """Choose the epoch of each fold in three ways.

    `published`: one epoch for all folds, the best of the mean over the test folds themselves, as in the published code;
    the result is too optimistic.
    `nested`: for each fold the epoch that is best on the mean of the *other* folds' runs, so that no fold chooses its
    own epoch. `last`: the last epoch.

    Args:
        curves: the score of each epoch, by fold.

    Returns:
        The choice by the name of the way.
    """
    length = min(len(curve) for curve in curves.values())

    def best(names: Sequence[str]) -> int:
        means = [statistics.fmean(curves[name][epoch] for name in names) for epoch in range(length)]
        return means.index(max(means))

    everywhere = best(list(curves))
    ways = {
        "published": dict.fromkeys(curves, everywhere),
        "nested": {name: best([other for other in curves if other != name]) for name in curves},
        "last": dict.fromkeys(curves, length - 1),
    }
    return {way: _scores(curves, epochs) for way, epochs in ways.items()}


def _scores(curves: dict[str, list[float]], epochs: dict[str, int]) -> FoldChoice:
    scores = {name: curves[name][epoch] for name, epoch in epochs.items()}
    return FoldChoice(
        epochs={name: epoch + 1 for name, epoch in epochs.items()},
        scores=scores,
        mean=statistics.fmean(scores.values()),
        std=statistics.stdev(scores.values()),
    )


def _log(settings: CrossValidateSettings, result: CrossValidation, output: Path) -> None:
    mlflow_store.open_store(settings.tracking)
    tags = {"stage": "folds", "run_dir": str(settings.run_dir), "seed": str(settings.seed)}
    params = {"shards": settings.shards, "seed": settings.seed, "folds": ", ".join(result.curves)}
    with runs.start_run(settings.experiment, f"{settings.experiment}-folds", params, tags) as run_id:
        flat: dict[str, float] = {}
        for way, choice in result.choices.items():
            flat |= {f"{way}_mean": choice.mean, f"{way}_std": choice.std}
        runs.log_metrics(run_id, flat)
        runs.log_artifacts(run_id, output)


def _table(result: CrossValidation) -> Table:
    title = f"{result.metric} by held-out fold (and the epoch chosen)"
    table = Table("epoch", *result.curves, "mean", "std", title=title)
    for way, row in result.choices.items():
        cells = [f"{row.scores[name]:.3f} ({row.epochs[name]})" for name in result.curves]
        table.add_row(way, *cells, f"{row.mean:.4f}", f"{row.std:.4f}")
    table.caption = "\n".join(f"{way}: {what}" for way, what in WAYS.items())
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: cross_validate(parse_settings(CrossValidateSettings, __doc__, argv)))
