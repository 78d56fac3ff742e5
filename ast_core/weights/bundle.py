"""Bundle: the folder that is registered and that predicts.

It holds weights, front end, labels and hashes as safetensors and JSON: no code and no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ast_core.config import FrontEndConfig, Loss
from ast_core.errors import require
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict, to_identity
from ast_core.storage.atomic_files import remove_file, remove_if_incomplete, sha256_of
from ast_core.storage.disk_space import require_free_space
from ast_core.storage.json_files import read_hashed_json, sha256_of_json, write_hashed_json
from ast_core.storage.tensor_files import JSON_BYTES, bytes_of, write_tensors
from ast_core.weights import bundle_description, huggingface
from ast_core.weights.bundle_description import BundleFacts, Entry, read_description, read_member_weights
from ast_core.weights.decisions import FILE as DECISIONS
from ast_core.weights.decisions import Decisions, load_decisions
from ast_core.weights.ensemble_mean import Member
from ast_core.weights.pretrained import load_exactly

DESCRIPTION = bundle_description.FILE
MEANING = ("model", "front_end", "mean", "std", "loss")
"""Keys of an identity that, besides the labels, give a member's weights their meaning."""


@dataclass(frozen=True)
class Bundle:
    """One or more members over the same labels."""

    labels: tuple[str, ...]
    """Names of the classes, in the order of the probabilities."""
    single_label: bool
    """Whether a clip has exactly one label."""
    members: tuple[Member, ...]
    """Models whose probabilities are averaged."""
    digest: str
    """SHA-256 over weights, labels and settings: the same model has the same digest."""
    facts: BundleFacts
    """Origin of the bundle: data hash, recipe, seeds, epochs."""
    decisions: Decisions | None = None
    """Calibration and thresholds, if they were fitted."""

    @property
    def front_end(self) -> FrontEndConfig:
        """Front end of the first member; waveforms must be at its sample rate."""
        return self.members[0].front_end

    @staticmethod
    def load(folder: Path) -> Bundle:
        """Read and verify a bundle; a folder in Hugging Face's format becomes a bundle of one member.

        Raises:
            UserError: the folder holds no bundle.
            DamagedError: a file's hash differs from the description's.
        """
        if huggingface.is_folder(folder):
            return _load_huggingface(folder)
        found = read_description(folder)
        classes = len(found.labels)
        members = tuple(_build_member(entry, read_member_weights(folder, entry), classes) for entry in found.members)
        decisions = load_decisions(folder, found.digest, classes)
        return Bundle(found.labels, found.single_label, members, found.digest, found.facts, decisions)


def read_members(folder: Path) -> list[tuple[str, dict[str, torch.Tensor], dict[str, Any]]]:
    """Return name, weights and identity of each member, in the form that `write_bundle` takes.

    Raises:
        UserError: the folder holds no bundle.
        DamagedError: a file's hash differs from the description's.
    """
    found = read_description(folder)
    return [
        (
            entry.name,
            read_member_weights(folder, entry),
            {"labels": list(found.labels), **{key: getattr(entry, key) for key in MEANING}},
        )
        for entry in found.members
    ]


def write_bundle(
    folder: Path,
    members: Sequence[tuple[str, dict[str, torch.Tensor], dict[str, Any]]],
    single_label: bool,
    facts: BundleFacts | None = None,
) -> str:
    """Commit a bundle; its description is written last.

    Args:
        folder: folder of the bundle.
        members: name, weights and identity (from a checkpoint's state) of each member.
        single_label: whether a clip has exactly one label.
        facts: origin of the bundle, if it is known.

    Returns:
        The bundle's digest.

    Raises:
        UserError: members differ in their labels.
    """
    labels = members[0][2]["labels"]
    for name, _, identity in members:
        require(
            identity["labels"] == labels,
            f"Member {name} was trained on other labels than {members[0][0]}. "
            "Combine only members that were trained on the same labels in the same order.",
        )
    entries = []
    require_free_space(folder / DESCRIPTION, sum(bytes_of(weights) for _, weights, _ in members) + JSON_BYTES)
    with remove_if_incomplete(folder, DESCRIPTION):
        for number, (name, weights, identity) in enumerate(members):
            path = folder / f"member-{number}.safetensors"
            write_tensors(path, weights)
            settings = {key: identity[key] for key in MEANING}
            entries.append({"name": name, "file": path.name, "sha256": sha256_of(path), **settings})
        content = {"labels": labels, "single_label": single_label, "members": entries}
        digest = sha256_of_json(content)
        _remove_stale_decisions(folder, digest)
        write_hashed_json(folder / DESCRIPTION, {**content, "facts": to_dict(facts or BundleFacts()), "digest": digest})
    return digest


def _remove_stale_decisions(folder: Path, bundle_digest: str) -> None:
    """Remove decisions that were fitted on another bundle: they do not hold for these weights."""
    path = folder / DECISIONS
    if path.is_file() and read_hashed_json(path, "Bundle's decisions").get("bundle_digest") != bundle_digest:
        remove_file(path)


def _load_huggingface(folder: Path) -> Bundle:
    """Read a folder in Hugging Face's format as a bundle of one member."""
    found = huggingface.read_folder(folder)
    sha256 = sha256_of(folder / huggingface.WEIGHTS)
    loss: Loss = "cross_entropy" if found.single_label else "bce"
    model, front_end = to_identity(found.model), to_dict(found.front_end)
    entry = Entry(folder.name, huggingface.WEIGHTS, sha256, model, front_end, found.mean, found.std, loss)
    settings = {key: value for key, value in vars(entry).items() if key not in {"file", "sha256"}}
    facts = BundleFacts(made_of=f"Hugging Face's format, {folder.name}")
    digest = sha256_of_json([settings, sha256])
    return bundle_of_one(entry, found.weights, found.labels, found.single_label, digest, facts)


def bundle_of_one(
    entry: Entry, weights: dict[str, torch.Tensor], labels: tuple[str, ...],
    single_label: bool, digest: str, facts: BundleFacts,
) -> Bundle:  # fmt: skip
    """Return a bundle of one member that was read from another format.

    Args:
        entry: description of the member.
        weights: its tensors under our names.
        labels: names of the classes, in the order of the head's rows.
        single_label: whether a clip has exactly one label.
        digest: SHA-256 over weights, labels and settings.
        facts: origin of the bundle.

    Raises:
        UserError: the weights do not fit the description; the text lists them.
    """
    member = _build_member(entry, weights, len(labels))
    return Bundle(labels, single_label, (member,), digest, facts)


def _build_member(entry: Entry, weights: dict[str, torch.Tensor], classes: int) -> Member:
    """Return a member with its weights loaded.

    The model is built on the meta device, so an absurd size in the description takes no memory before the weights are
    known to have that size.
    """
    config, front_end = entry.configs
    with torch.device("meta"):
        model = AST(config, front_end.num_mel_bins, front_end.target_frames, classes)
    load_exactly(model, weights, entry.name)
    return Member(entry.name, model.eval(), front_end, entry.mean, entry.std, entry.loss, config)
