"""Checkpoints: folders of safetensors and JSON whose marker, with every file's hash, is committed last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ast_core.errors import DamagedError, require
from ast_core.storage.atomic_files import (
    list_stored,
    remove_file,
    remove_folder,
    remove_if_incomplete,
    remove_temporary_files,
    sha256_of,
)
from ast_core.storage.disk_space import require_free_space
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from ast_core.storage.tensor_files import JSON_BYTES, Tensors, bytes_of, load_tensors, write_tensors

MARKER = "COMMITTED.json"


def save(folder: Path, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> None:
    """Commit a checkpoint: each table of tensors as NAME.safetensors, then state and hashes in the marker.

    One process at a time saves in a folder: it removes what those that were killed left half written there.

    Args:
        folder: of this checkpoint; an unfinished one there is replaced.
        tensors: tables by name, such as `model` and `optimizer`.
        state: JSON values, such as the step and the config.

    Raises:
        NoRoomError: the disk is full; one that was there stays, of a new one nothing.
    """
    require_free_space(folder / MARKER, sum(map(bytes_of, tensors.values())) + JSON_BYTES)
    remove_file(folder / MARKER)
    remove_temporary_files(folder)
    hashes = {}
    with remove_if_incomplete(folder, MARKER):
        for name, table in tensors.items():
            path = folder / f"{name}.safetensors"
            write_tensors(path, table)
            hashes[path.name] = sha256_of(path)
        write_hashed_json(folder / MARKER, {"sha256": hashes, "state": state})


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's JSON state, after checking its files' hashes.

    Raises:
        DamagedError: a file is missing or its bytes differ, the marker's, too; names both hashes.
    """
    marker = read_hashed_json(folder / MARKER, "Checkpoint's marker")
    if not all(isinstance(marker.get(part), dict) for part in ("sha256", "state")):
        raise DamagedError(f"Checkpoint's marker is damaged: {folder / MARKER} has no hashes or no state.")
    for name, expected in marker["sha256"].items():
        found = _sha256_in(folder, name)
        if found != expected:
            where, what = folder / name[:255], str(expected)[:64]
            raise DamagedError(f"Checkpoint {where} is damaged: sha256 {found}, not {what}.")
    state: dict[str, Any] = marker["state"]
    return state


def _sha256_in(folder: Path, name: str) -> str:
    """Of a folder's own file, whatever the name leads to; "no file" also where it is removed for a newer one."""
    try:
        return sha256_of({path.name: path for path in folder.iterdir() if path.is_file()}[name])
    except (KeyError, FileNotFoundError):
        return "no file"


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """One table of a checkpoint, on the CPU.

    Raises:
        DamagedError: the file is missing or not safetensors.
    """
    return load_tensors(folder / f"{name}.safetensors")


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest verified checkpoint under `folder`, and a sentence for each newer one that was passed over."""
    passed_over = []
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        if not (candidate / MARKER).is_file():
            continue  # never committed: a kill inside a save
        try:
            read_state(candidate)
        except DamagedError as error:
            passed_over.append(str(error))
        else:
            return candidate, passed_over
    return None, passed_over


def remove_older(folder: Path, count: int) -> None:
    """Remove all but the newest `count` committed checkpoints, and stumps older than them."""
    stored = list_stored(folder)  # also what another node committed
    there = {*folder.glob("step-*"), *(path.parent for path in stored)}
    done = sorted(path for path in there if (path / MARKER).is_file() or path / MARKER in stored)
    if len(done) > count:
        for path in there:
            if path.name < done[-count].name:
                remove_folder(path, MARKER)


def epoch_folders(folder: Path) -> dict[int, Path]:
    """Committed epoch folders by epoch."""
    found = {}
    for path in sorted(folder.glob("epoch-*")):
        match = re.fullmatch(r"epoch-(\d+)", path.name)
        if match and (path / MARKER).is_file():
            found[int(match[1])] = path
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's state as a flat table: `PARAMETER.KEY`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put a flat table back into an optimizer over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {str(number): number for number in range(len(parameters))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        number = numbers.get(index)
        fits = number is not None and (value.ndim == 0 or value.shape == parameters[number].shape)
        require(fits, f"The checkpoint's optimiser is of another model: {name[:100]} is {tuple(value.shape)}.")
        state.setdefault(numbers[index], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
