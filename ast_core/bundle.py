"""A bundle: the folder that is registered and predicts. Weights, front end, labels, hashes; no code, no pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ast_core import huggingface
from ast_core.config import FrontEndConfig, ModelConfig, from_dict, require, to_dict
from ast_core.decisions import FILE as DECISIONS
from ast_core.decisions import Decisions, load_decisions
from ast_core.ensemble import Member
from ast_core.errors import DamagedError
from ast_core.files import committed, digest, read_checked, remove, sha256_of, write_checked
from ast_core.model import AST
from ast_core.pretrained import load_exactly

DESCRIPTION = "bundle.json"
MEANING = ("model", "front_end", "mean", "std", "loss")
"""What, besides labels, a member's weights mean."""


@dataclass(frozen=True)
class Bundle:
    """One or more members over the same labels."""

    labels: tuple[str, ...]
    single_label: bool
    members: tuple[Member, ...]
    digest: str
    """SHA-256 over weights, labels and settings: the same model has the same digest."""
    facts: dict[str, Any]
    """Where it came from: data hash, recipe, seeds, epochs."""
    decisions: Decisions | None = None
    """Calibration and thresholds, if they were fitted."""

    @property
    def front_end(self) -> FrontEndConfig:
        """The first member's front end; its rate is what `waveform` inputs are at."""
        return self.members[0].front_end

    @staticmethod
    def load(folder: Path) -> Bundle:
        """Read and verify a bundle; a folder in Hugging Face's format is one of one member.

        Raises:
            UserError: there is none in the folder.
            DamagedError: a file's hash differs from the description's.
        """
        if huggingface.is_folder(folder):
            return _of_huggingface(folder)
        description = read_checked(folder / DESCRIPTION, "Bundle's description")
        classes = len(description["labels"])
        members = [_member(entry, _weights(folder, entry), classes) for entry in description["members"]]
        labels, single = tuple(description["labels"]), description["single_label"]
        decisions = load_decisions(folder, description["digest"])
        return Bundle(labels, single, tuple(members), description["digest"], description["facts"], decisions)


def read_members(folder: Path) -> list[tuple[str, dict[str, torch.Tensor], dict[str, Any]]]:
    """Name, weights and identity of each member, as `write_bundle` takes them.

    Raises:
        UserError: there is no bundle in the folder.
        DamagedError: a file's hash differs from the description's.
    """
    description = read_checked(folder / DESCRIPTION, "Bundle's description")
    labels = description["labels"]
    return [
        (entry["name"], _weights(folder, entry), {"labels": labels, **{key: entry[key] for key in MEANING}})
        for entry in description["members"]
    ]


def write_bundle(
    folder: Path,
    members: Sequence[tuple[str, dict[str, torch.Tensor], dict[str, Any]]],
    single_label: bool,
    facts: dict[str, Any],
) -> str:
    """Commit a bundle, its description last.

    Args:
        folder: of the bundle.
        members: name, weights and identity (from a checkpoint's state) of each.
        single_label: whether a clip has exactly one label.
        facts: where it came from.

    Returns:
        Its digest.

    Raises:
        UserError: members differ in their labels.
    """
    labels = members[0][2]["labels"]
    for name, _, identity in members:
        require(identity["labels"] == labels, f"Member {name} was trained on other labels than {members[0][0]}.")
    entries = []
    for number, (name, weights, identity) in enumerate(members):
        path = folder / f"member-{number}.safetensors"
        with committed(path) as beside:
            save_file({key: value.contiguous() for key, value in weights.items()}, beside)
        settings = {key: identity[key] for key in MEANING}
        entries.append({"name": name, "file": path.name, "sha256": sha256_of(path), **settings})
    content = {"labels": labels, "single_label": single_label, "members": entries}
    value = digest(content)
    _forget_decisions(folder, value)
    write_checked(folder / DESCRIPTION, {**content, "facts": facts, "digest": value})
    return value


def _forget_decisions(folder: Path, bundle_digest: str) -> None:
    """Thresholds of other weights are none."""
    path = folder / DECISIONS
    if path.is_file() and read_checked(path, "Bundle's decisions").get("bundle_digest") != bundle_digest:
        remove(path)


def _weights(folder: Path, entry: dict[str, Any]) -> dict[str, torch.Tensor]:
    path = folder / entry["file"]
    require(path.parent == folder, f"{folder / DESCRIPTION} names a file outside its folder: {entry['file']}.")
    found = sha256_of(path) if path.is_file() else "no file"
    if found != entry["sha256"]:
        raise DamagedError(f"{path} is damaged: sha256 {found}, not {entry['sha256']}. Fetch or combine it again.")
    weights: dict[str, torch.Tensor] = load_file(path)
    return weights


def _of_huggingface(folder: Path) -> Bundle:
    found = huggingface.read_folder(folder)
    loss = "cross_entropy" if found.single_label else "bce"
    entry: dict[str, Any] = {"name": folder.name, "model": to_dict(found.model), "front_end": to_dict(found.front_end)}
    entry |= {"mean": found.mean, "std": found.std, "loss": loss}
    member = _member(entry, found.weights, len(found.labels))
    sha256 = sha256_of(folder / huggingface.WEIGHTS)
    facts = {"made_of": f"Hugging Face's format, {folder.name}"}
    return Bundle(found.labels, found.single_label, (member,), digest([entry, sha256]), facts)


def _member(entry: dict[str, Any], weights: dict[str, torch.Tensor], classes: int) -> Member:
    front_end = from_dict(FrontEndConfig, entry["front_end"])
    config = from_dict(ModelConfig, entry["model"])
    model = AST(config, front_end.num_mel_bins, front_end.target_frames, classes)
    load_exactly(model, weights, entry["name"])
    return Member(entry["name"], model.eval(), front_end, entry["mean"], entry["std"], entry["loss"], config)
