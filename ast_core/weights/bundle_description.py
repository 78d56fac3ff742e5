"""Description of a bundle, `bundle.json`: untrusted input, of which every value is checked before it is used."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ast_core.config import FrontEndConfig, Loss, ModelConfig
from ast_core.errors import DamagedError, UserError, require
from ast_core.serialization import from_dict
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import read_hashed_json, sha256_of_json
from ast_core.storage.tensor_files import load_tensors, require_plain

FILE = "bundle.json"
"""Name of the description in a bundle's folder."""
SHOWN = 5
"""Labels that an error names at most."""


@dataclass(frozen=True)
class Entry:
    """One member in the description."""

    name: str
    """Name of the member, such as `seed-0`."""
    file: str
    """Name of the file of weights, directly in the bundle's folder."""
    sha256: str
    """Hash of that file."""
    model: dict[str, Any]
    """Values of the model's `ModelConfig`, as they are stored: the digest is over them, without later defaults."""
    front_end: dict[str, Any]
    """Values of the `FrontEndConfig`, as they are stored."""
    mean: float
    """Mean of the training set's log-mel."""
    std: float
    """Standard deviation of the training set's log-mel."""
    loss: Loss
    """Loss that the member was trained with."""

    def __post_init__(self) -> None:
        """Check the file's name, which becomes a path, and the standard deviation, which is a divisor."""
        inside = re.fullmatch(r"\w[\w.-]{,99}", self.file) is not None
        require(inside, f"member {self.name[:99]!a} names a file outside its folder: {self.file[:99]!a}.")
        require(self.std > 0, f"the standard deviation of {self.name[:99]!a} is {self.std}; it must be more than 0.")

    @property
    def configs(self) -> tuple[ModelConfig, FrontEndConfig]:
        """Checked configurations of the model and of the front end."""
        return from_dict(ModelConfig, self.model), from_dict(FrontEndConfig, self.front_end)


@dataclass(frozen=True)
class BundleFacts:
    """Origin of a bundle, for tables and tags; the digest does not cover it. A bundle from elsewhere may lack it."""

    IGNORES_UNKNOWN_KEYS: ClassVar = True

    recipe: str = ""
    """Name of the recipe or experiment."""
    data_hash: str = ""
    """Hash of the shards that the members were trained on."""
    seeds: tuple[int, ...] = ()
    """Seeds of the members."""
    made_of: str = ""
    """Weights that the bundle was made of, as a table says it."""
    role: str = ""
    """Part that the bundle plays in its run: `member`, `last`, `epochs` or `ensemble`."""
    train_runs: tuple[str, ...] = ()
    """MLflow runs of the members' trainings."""


@dataclass(frozen=True)
class Description:
    """Content of the description."""

    labels: tuple[str, ...]
    """Names of the classes, in the order of the probabilities."""
    single_label: bool
    """Whether a clip has exactly one label."""
    members: tuple[Entry, ...]
    """Members, in the order of the probabilities that are averaged."""
    facts: BundleFacts
    """Origin of the bundle."""
    digest: str
    """SHA-256 over labels, `single_label` and members."""

    def __post_init__(self) -> None:
        """Check the labels and that a member exists."""
        require_labels(self.labels)
        require(bool(self.members), "it has no member.")


def require_labels(labels: Any) -> None:
    """Raise a `UserError` unless `labels` is a list of distinct names, at least one."""
    require(
        isinstance(labels, list | tuple) and bool(labels), "the labels are missing; they must be a list of class names."
    )
    for number, label in enumerate(labels):
        require(isinstance(label, str), f"label {number} is of type {type(label).__name__}; it must be a name.")
        require(bool(label), f"label {number} is empty; it must be a name.")
    repeated = [label[:80] for label, count in Counter(labels).items() if count > 1]
    require(
        not repeated, f"the labels {repeated[:SHOWN]!a} appear more than once; every class needs a name of its own."
    )


def read_description(folder: Path) -> Description:
    """Read and check a bundle's description.

    Raises:
        UserError: the file is missing.
        DamagedError: the file is not as `write_bundle` wrote it.
    """
    path = folder / FILE
    values = read_hashed_json(path, "Bundle's description")
    try:
        found = from_dict(Description, values)
        for entry in found.members:
            _ = entry.configs
    except UserError as error:
        raise DamagedError(f"{path} was refused: {error}") from None
    if sha256_of_json({key: values[key] for key in ("labels", "single_label", "members")}) != found.digest:
        raise DamagedError(
            f"{path} is damaged: its digest does not match its members and labels. Fetch or combine the bundle again."
        )
    return found


def read_member_weights(folder: Path, entry: Entry) -> dict[str, torch.Tensor]:
    """Read a member's weights, after checking their hash.

    Raises:
        DamagedError: the file is missing, has another hash, or is a link to another folder.
        UserError: the file holds something other than plain tensors.
    """
    path = folder / entry.file
    if path.resolve().parent != folder.resolve():
        raise DamagedError(f"{path} was refused: it is a link out of its folder. Replace the link by the file.")
    found = sha256_of(path) if path.is_file() else "no file"
    if found != entry.sha256:
        raise DamagedError(f"{path} is damaged: sha256 {found}, not {entry.sha256}. Fetch or combine the bundle again.")
    return require_plain(load_tensors(path), str(path))
