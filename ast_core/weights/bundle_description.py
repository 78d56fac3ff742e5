"""`bundle.json`: what a bundle says of itself, believed only as far as it can be checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ast_core.config import FrontEndConfig, Loss, ModelConfig
from ast_core.errors import DamagedError, UserError, require
from ast_core.serialization import from_dict
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import read_hashed_json, sha256_of_json
from ast_core.storage.tensor_files import load_tensors, require_plain

FILE = "bundle.json"


@dataclass(frozen=True)
class Entry:
    """A member as the description has it."""

    name: str
    file: str
    """Of its weights, in the bundle's own folder."""
    sha256: str
    model: dict[str, Any]
    front_end: dict[str, Any]
    mean: float
    std: float
    loss: Loss

    def __post_init__(self) -> None:
        """Check what a path or a division is made of."""
        inside = re.fullmatch(r"\w[\w.-]{,99}", self.file) is not None
        require(inside, f"it names a file outside its folder: {self.file[:99]!a}.")
        require(self.std > 0, f"the standard deviation of {self.name} is {self.std}.")

    @property
    def configs(self) -> tuple[ModelConfig, FrontEndConfig]:
        """Of its model and its front end."""
        return from_dict(ModelConfig, self.model), from_dict(FrontEndConfig, self.front_end)


@dataclass(frozen=True)
class Description:
    """All of the file."""

    labels: tuple[str, ...]
    single_label: bool
    members: tuple[dict[str, Any], ...]
    facts: dict[str, Any]
    digest: str

    def __post_init__(self) -> None:
        """Check what models are built of."""
        require_labels(self.labels)
        require(bool(self.members), "it has no member.")

    @property
    def content(self) -> dict[str, Any]:
        """As the file has it."""
        return {**vars(self), "labels": list(self.labels), "members": list(self.members)}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Its members."""
        return tuple(from_dict(Entry, member) for member in self.members)


def require_labels(labels: Any) -> None:
    """UserError, unless they are different names."""
    names = isinstance(labels, list | tuple) and all(isinstance(label, str) and label for label in labels)
    require(names and bool(labels) and len(set(labels)) == len(labels), "its labels are not different names.")


def read_description(folder: Path) -> Description:
    """A bundle's description.

    Raises:
        UserError: there is none.
        DamagedError: it is not what `write_bundle` wrote.
    """
    path = folder / FILE
    values = read_hashed_json(path, "Bundle's description")
    try:
        found = from_dict(Description, values)
        for entry in found.entries:
            _ = entry.configs
    except UserError as error:
        raise DamagedError(f"{path} was refused: {error}") from None
    if sha256_of_json({key: found.content[key] for key in ("labels", "single_label", "members")}) != found.digest:
        raise DamagedError(f"{path} is damaged: its digest is of other members or labels. Fetch or combine it again.")
    return found


def member_weights(folder: Path, entry: Entry) -> dict[str, torch.Tensor]:
    """A member's weights.

    Raises:
        DamagedError: the file is missing, is not the one that was described, or lies elsewhere.
        UserError: it holds something else than plain tensors.
    """
    path = folder / entry.file
    if path.resolve().parent != folder.resolve():
        raise DamagedError(f"{path} was refused: it is a link out of its folder. Put the file itself there.")
    found = sha256_of(path) if path.is_file() else "no file"
    if found != entry.sha256:
        raise DamagedError(f"{path} is damaged: sha256 {found}, not {entry.sha256}. Fetch or combine it again.")
    return require_plain(load_tensors(path), str(path))
