"""Combine trained members: average each one's epochs (or take its last or best), and put the ensemble together.

ast-pipeline combine --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["combine", *sys.argv[1:]])
    sys.exit()


import torch
from rich.console import Console
from rich.table import Table

from ast_core.config import OptimConfig
from ast_core.errors import require
from ast_core.evaluation.metrics import headline_metric
from ast_core.shards.index import ShardIndex
from ast_core.storage.atomic_files import list_stored, remove_folder
from ast_core.training.early_stopping import shorten_run
from ast_core.training.member_folder import MemberFolder
from ast_core.weights import checkpoint
from ast_core.weights.average import average_weights
from ast_core.weights.bundle import DESCRIPTION, write_bundle
from ast_core.weights.bundle_description import BundleFacts
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import CombineSettings
from pipeline.run_folder.layout import PROBE, RunFolder, member_files, member_name
from pipeline.run_folder.opened import opened
from pipeline.tracking.run_note import NOTE, read_run_note

Role = Literal["member", "last", "epochs", "ensemble"]
"""The part that a bundle plays in its run: members and ensembles are registered, the others serve to compare."""
Part = tuple[str, dict[str, torch.Tensor], dict[str, Any]]


def combine(settings: CombineSettings) -> list[Path]:
    """Write a bundle for each member (and for its last epoch, to compare with), and one for all of them.

    Returns:
        The folders of the bundles; the last one predicts: the ensemble's, or the only member's.

    Raises:
        UserError: a member is missing, unfinished, or of another model than the recipe's.
    """
    reads = [path for seed in settings.ensemble.seeds for path in member_files(seed, ["epochs/*", NOTE])]
    with opened(settings, reads, exclusive="combine") as run:
        index = ShardIndex.load(run.shards)
        table = Table("bundle", "made of", "digest", title="combine")
        written = []
        for bundle in _plan(settings, run, index):
            digest = _write(settings, run, index, bundle)
            table.add_row(bundle.name, bundle.made_of, digest[:12])
            written.append(run.bundle(bundle.name))
        _remove_stale(run.bundles, written)
    Console().print(table)
    return written


@dataclass(frozen=True)
class PlannedBundle:
    """A bundle that is about to be written."""

    name: str
    parts: list[Part]
    """Name, weights and identity of each member."""
    made_of: str
    seeds: tuple[int, ...]
    role: Role


def _plan(settings: CombineSettings, run: RunFolder, index: ShardIndex) -> Iterator[PlannedBundle]:
    """Yield the bundles one after the other; only the members' weights stay in memory until the ensemble is written."""
    members = []
    for seed in settings.ensemble.seeds:
        member = run.member(seed)
        optim = _read_optim(member, settings.optim)
        epochs = _finished_epochs(member, optim.epochs)
        yield from _bundles_to_compare(settings, optim, epochs, seed)
        part, made_of = _representative(member.name, epochs, optim, index.single_label)
        members.append(PlannedBundle(member.name, [part], made_of, (seed,), "member"))
        yield members[-1]
    if len(members) > 1:
        yield _ensemble_of(members)


def _read_optim(member: MemberFolder, optim: OptimConfig) -> OptimConfig:
    """Return the settings with the epochs that a member has, which are fewer if it stopped early."""
    if not optim.early_stopping_epochs:
        return optim
    folders = checkpoint.epoch_folders(member.epochs)
    rows: list[dict[str, float]] = []
    while (epoch := len(rows) + 1) in folders:
        rows.append(checkpoint.read_state(folders[epoch])["row"])
    return shorten_run(optim, rows)


def _bundles_to_compare(
    settings: CombineSettings, optim: OptimConfig, epochs: dict[int, Path], seed: int
) -> Iterator[PlannedBundle]:
    """Yield a member's last epoch, and all its epochs as an ensemble of their own, where they are wanted."""
    name, count = member_name(seed), optim.epochs
    if optim.weights != "last":
        yield PlannedBundle(f"{name}-last", [_part(name, epochs[count])], f"epoch {count}", (seed,), "last")
    if settings.ensemble.epochs:
        every = [_part(f"{name}-epoch-{epoch}", epochs[epoch]) for epoch in range(1, count + 1)]
        yield PlannedBundle(f"{name}-epochs", every, f"mean of {count} epochs' probabilities", (seed,), "epochs")


def _ensemble_of(members: Sequence[PlannedBundle]) -> PlannedBundle:
    parts = [part for member in members for part in member.parts]
    seeds = tuple(seed for member in members for seed in member.seeds)
    return PlannedBundle("ensemble", parts, f"mean of {len(parts)} members' probabilities", seeds, "ensemble")


def _write(settings: CombineSettings, run: RunFolder, index: ShardIndex, bundle: PlannedBundle) -> str:
    """Write a bundle and return its digest."""
    train_runs = tuple(run_id for seed in bundle.seeds if (run_id := read_run_note(run.member(seed).path)))
    facts = BundleFacts(settings.experiment, index.data_hash, bundle.seeds, bundle.made_of, bundle.role, train_runs)
    return write_bundle(run.bundle(bundle.name), bundle.parts, index.single_label, facts)


def _remove_stale(bundles: Path, written: Sequence[Path]) -> None:
    """Remove bundles of seeds that the recipe no longer names; they can be made again from their epochs.

    The bundle of `probe` stays.
    """
    stored = (path for path in list_stored(bundles) if path.name == DESCRIPTION)
    for description in {*bundles.glob(f"*/{DESCRIPTION}"), *stored}:
        if description.parent not in [*written, bundles / PROBE]:
            remove_folder(description.parent, DESCRIPTION)


def _finished_epochs(member: MemberFolder, epochs: int) -> dict[int, Path]:
    """Return the folder of each epoch; UserError if one is missing."""
    found = checkpoint.epoch_folders(member.epochs)
    missing = [epoch for epoch in range(1, epochs + 1) if epoch not in found]
    require(
        not missing,
        f"{member.path} lacks epochs {missing[:10]}: train --seed {member.name.removeprefix('seed-')} first.",
    )
    return found


def _representative(name: str, epochs: dict[int, Path], optim: OptimConfig, single_label: bool) -> tuple[Part, str]:
    """Return the weights that stand for a member, by the recipe, and what they are made of."""
    if optim.weights == "averaged":
        chosen = [epochs[epoch] for epoch in range(optim.average_first_epoch, optim.epochs + 1)]
        part = (name, average_weights(chosen), checkpoint.read_state(chosen[0])["identity"])
        return part, f"mean of epochs {optim.average_first_epoch} to {optim.epochs}"
    if optim.weights == "last":
        return _part(name, epochs[optim.epochs]), f"epoch {optim.epochs}"
    if optim.weights == "ema":
        last = epochs[optim.epochs]
        average = (name, checkpoint.read_tensors(last, "ema"), checkpoint.read_state(last)["identity"])
        return average, f"moving average over steps, decay {optim.ema_decay}"
    key = f"validation_{headline_metric(single_label)}"
    rows = {epoch: checkpoint.read_state(path)["row"] for epoch, path in epochs.items() if epoch <= optim.epochs}
    require(
        all(key in row for row in rows.values()),
        "optim.weights is best, which needs data.validation-split: the test split must not choose.",
    )
    best = max(rows, key=lambda epoch: (rows[epoch][key], -epoch))
    return _part(name, epochs[best]), f"epoch {best}, best on validation"


def _part(name: str, folder: Path) -> Part:
    identity = checkpoint.read_state(folder)["identity"]
    return name, checkpoint.read_tensors(folder, "model"), identity


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: combine(parse_settings(CombineSettings, __doc__, argv)))
