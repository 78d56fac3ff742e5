"""Commits of the models of Hugging Face's hub that a run uses: the first launch notes them, later ones use the same."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import filelock

from ast_core.errors import require
from ast_core.serialization import from_dict, to_dict
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from ast_core.weights.hub.hub_address import is_hub_address, parse_hub_address
from ast_core.weights.hub.hub_files import HubModel, fetch_hub_model
from pipeline.run_folder.downloads import download_files
from pipeline.run_folder.layout import RunFolder

if TYPE_CHECKING:  # workers import this folder, and need no command line
    from pipeline.cli.stages import RunSettings, TrainSettings

SettingsT = TypeVar("SettingsT", bound="TrainSettings | RunSettings")


@dataclass(frozen=True)
class PinnedModel:
    """A model of the hub, as `hub-models.json` stores it."""

    address: str
    """Address in the settings, with a branch or without a revision."""
    pinned: str
    """Address with the commit that the first launch found."""
    sha256: dict[str, str]
    """SHA-256 of each file by name."""


def pin_initial_weights(settings: SettingsT, run_dir: Path | None = None) -> SettingsT:
    """Return the settings with the commit of the initial weights, if they are a model of the hub.

    The first launch downloads the model. Later ones read the commit from the run's note.

    Args:
        settings: of a training or of a complete run, whose folder is attached to its object store.
        run_dir: folder with the note; by default that of the settings.

    Raises:
        UserError: the model cannot be downloaded.
        DamagedError: a byte of the note changed.
    """
    init = settings.model.init
    if not is_hub_address(init):
        return settings
    folder = run_dir or settings.run_dir
    found = find_pinned(init, folder)
    pinned = found.pinned if found else str(fetch_pinned(init, folder).address)
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, init=pinned))


def find_pinned(address: str, run_dir: Path) -> PinnedModel | None:
    """Return what a run noted about a model of the hub, None if it noted nothing; DamagedError if a byte changed."""
    note = RunFolder(run_dir, run_dir).hub_models
    download_files(run_dir, [note.name])
    return next((own for own in _read_note(note) if address in {own.address, own.pinned}), None)


def fetch_pinned(address: str, run_dir: Path) -> HubModel:
    """Return a model of the hub at the commit that the run noted; note its commit if this is the first launch.

    Args:
        address: `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`.
        run_dir: folder of the run.

    Raises:
        UserError: the model cannot be downloaded, or its files are not those that the run noted.
        DamagedError: a byte of the note changed.
    """
    note = RunFolder(run_dir, run_dir).hub_models
    run_dir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(note.with_name(f".{note.name}.lock")):  # members of one run may be trained at the same time
        pinned = find_pinned(address, run_dir)
        found = fetch_hub_model(parse_hub_address(pinned.pinned if pinned else address))
        if pinned is None:
            new = PinnedModel(address, str(found.address), found.sha256)
            write_hashed_json(note, {"models": [to_dict(own) for own in (*_read_note(note), new)]})
            return found
    changed = sorted(
        name for name in {*pinned.sha256, *found.sha256} if pinned.sha256.get(name) != found.sha256.get(name)
    )
    require(
        not changed,
        f"{found.address} has other files now than when the run in {run_dir} began: {', '.join(changed)}. Remove "
        f"{found.folder} and run again, or start a run in another folder.",
    )
    return found


def _read_note(note: Path) -> list[PinnedModel]:
    """Return the models that a run noted."""
    if not note.is_file():
        return []
    rows = read_hashed_json(note, "Note of the hub's models").get("models")
    require(isinstance(rows, list), f"{note} has no list of models. Remove it and run again.")
    return [from_dict(PinnedModel, row) for row in rows or []]
