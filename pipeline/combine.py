"""Combine trained members: average each one's epochs (or take its last or best), and put the ensemble together.

python pipeline/combine.py --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from ast_core.config import OptimConfig
from ast_core.errors import require
from ast_core.shards.index import ShardIndex
from ast_core.storage.atomic_files import list_stored, remove_folder
from ast_core.weights import checkpoint
from ast_core.weights.average import average_weights
from ast_core.weights.bundle import DESCRIPTION, write_bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import CombineSettings
from pipeline.run_folder import folder_lock, sync
from pipeline.tracking.run_note import NOTE, read_run_note

Role = Literal["member", "last", "epochs", "ensemble"]
"""What a bundle is to its run: members and ensembles are registered, the others are there to compare with."""
Part = tuple[str, dict[str, torch.Tensor], dict[str, Any]]


def combine(settings: CombineSettings) -> list[Path]:
    """Write a bundle for each member (and for its last epoch, to compare with), and one for all of them.

    Returns:
        The bundles' folders; the last is what predicts: the ensemble's, or the only member's.

    Raises:
        UserError: a member is missing, unfinished, or of another model than it should be.
    """
    members = [f"members/seed-{seed}" for seed in settings.ensemble.seeds]
    sync.download_inputs(settings, files=[f"{own}/{name}" for own in members for name in ("epochs/*", NOTE)])
    index = ShardIndex.load(settings.shards)
    with folder_lock.lock_folder(settings.run_dir / "bundles", "combined"):
        return _combined(settings, index)


def _combined(settings: CombineSettings, index: ShardIndex) -> list[Path]:
    facts = {"recipe": settings.experiment, "data_hash": index.data_hash}
    written, parts = [], []
    table = Table(title="combine")
    for column in ("bundle", "made of", "digest"):
        table.add_column(column)

    def write(name: str, members: list[Part], made_of: str, seeds: Sequence[int], role: Role) -> None:
        folder = settings.run_dir / "bundles" / name
        own = {"seeds": list(seeds), "made_of": made_of, "role": role, "train_runs": _train_runs(settings, seeds)}
        digest = write_bundle(folder, members, index.single_label, {**facts, **own})
        table.add_row(name, made_of, digest[:12])
        written.append(folder)

    for seed in settings.ensemble.seeds:
        name = f"seed-{seed}"
        epochs = _finished_epochs(settings.run_dir / "members" / name, settings.optim.epochs)
        part, made_of = _standing(name, epochs, settings.optim, index.single_label)
        parts.append(part)
        if settings.optim.weights != "last":
            last = epochs[settings.optim.epochs]
            write(f"{name}-last", [_part(name, last)], f"epoch {settings.optim.epochs}", [seed], "last")
        if settings.ensemble.epochs:
            every = [_part(f"{name}-epoch-{epoch}", epochs[epoch]) for epoch in range(1, settings.optim.epochs + 1)]
            write(f"{name}-epochs", every, f"mean of {len(every)} epochs' probabilities", [seed], "epochs")
        write(name, [part], made_of, [seed], "member")
    if len(parts) > 1:
        write("ensemble", parts, f"mean of {len(parts)} members' probabilities", settings.ensemble.seeds, "ensemble")
    _remove_stale(settings.run_dir / "bundles", written)
    Console().print(table)
    return written


def _train_runs(settings: CombineSettings, seeds: Sequence[int]) -> list[str]:
    """MLflow's ids of the trainings that were tracked."""
    runs = (read_run_note(settings.run_dir / "members" / f"seed-{seed}") for seed in seeds)
    return [run for run in runs if run]


def _remove_stale(bundles: Path, written: Sequence[Path]) -> None:
    """Remove bundles of seeds that the recipe no longer names; they can be made again from their epochs."""
    stored = (path for path in list_stored(bundles) if path.name == DESCRIPTION)
    for description in {*bundles.glob(f"*/{DESCRIPTION}"), *stored}:
        if description.parent not in written:
            remove_folder(description.parent, DESCRIPTION)


def _finished_epochs(member: Path, epochs: int) -> dict[int, Path]:
    found = checkpoint.epoch_folders(member / "epochs")
    missing = [epoch for epoch in range(1, epochs + 1) if epoch not in found]
    require(
        not missing, f"{member} lacks epochs {missing[:10]}: train --seed {member.name.removeprefix('seed-')} first."
    )
    return found


def _standing(name: str, epochs: dict[int, Path], optim: OptimConfig, single_label: bool) -> tuple[Part, str]:
    """The weights that stand for a member, as the recipe says."""
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
    key = "validation_accuracy" if single_label else "validation_mAP"
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


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.combine import main

    main()
