"""Initial weights: ImageNet's (timm, by hub or file) and AST's (published .pth, ours, Hugging Face's).

The only place that unpickles, with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.errors import UserError, require
from ast_core.model.transformer import AST, patch_grid
from ast_core.serialization import from_dict
from ast_core.storage.tensor_files import load_tensors, require_plain
from ast_core.weights import bundle_description, checkpoint, huggingface
from ast_core.weights.positions import adapt_positions

Weights = dict[str, torch.Tensor]
_UNUSED = ("v.head.", "v.head_dist.", "head.", "head_dist.", "fc_norm.")
"""ImageNet's heads: they get no gradient in AST."""


@dataclass(frozen=True)
class Source:
    """Weights under our names, and the grid that their positions are of."""

    name: str
    weights: Weights
    grid: tuple[int, int]
    labels: tuple[str, ...] | None = None
    """What the head's rows stand for, where it is known."""


def initialise(model: AST, config: ModelConfig, labels: Sequence[str] | None = None) -> None:
    """Load initial weights into a fresh model, in place; positions, input channels and head adapt by the rules.

    Args:
        model: as built from `config`.
        config: `init` says what from: `scratch`, `imagenet`, a file or a folder; `positions` and `projection` how.
        labels: the model's. A head of as many but other labels is made anew.

    Raises:
        UserError: the hub cannot be reached, nothing is there, or its tensors do not fit.
    """
    if config.init == "scratch":
        return
    source = _source(model, config)
    weights = dict(source.weights)
    _count(weights.get("pos_embed"), source.name)
    if config.positions == "reinitialised":
        weights["pos_embed"] = model.pos_embed.data
    elif source.grid != model.grid and _positions_fit(source, model):
        weights["pos_embed"] = adapt_positions(
            weights["pos_embed"], source.grid, model.grid, model.prefix_tokens, config.positions
        )
    other_labels = bool(source.labels and labels) and tuple(labels or ()) != source.labels
    head = weights.get("head.weight")
    if head is not None and (other_labels or head.shape != model.head.weight.shape):
        weights = {key: value for key, value in weights.items() if not key.startswith("head")}
    _assign(model, weights, source.name)


def _positions_fit(source: Source, model: AST) -> bool:
    """Whether positions are of this grid and as many prefix tokens; if not, `_assign` will say what differs."""
    return _count(source.weights["pos_embed"], source.name) == source.grid[0] * source.grid[1] + model.prefix_tokens


def _count(pos_embed: torch.Tensor | None, name: str) -> int:
    """Positions, prefix tokens among them."""
    fits = pos_embed is not None and pos_embed.ndim == 3 and len(pos_embed) == 1
    require(fits, f"{name} was refused: it has no positional embedding [1, positions, width].")
    return int(pos_embed.shape[1])  # type: ignore[union-attr]


def _source(model: AST, config: ModelConfig) -> Source:
    """Whatever `init` names, told apart by its files and its tensors' names."""
    init = config.init
    if init == "imagenet":
        return _imagenet(model, config, _from_hub(config.backbone))
    path = Path(init)
    if path.is_dir() and huggingface.is_folder(path):
        found = huggingface.read_folder(path)
        grid = patch_grid(found.model, found.front_end.num_mel_bins, found.front_end.target_frames)
        return Source(init, found.weights, grid, found.labels)
    if path.is_dir():
        return _own_folder(path)
    weights = {key.removeprefix("module."): value for key, value in _read(path).items()}
    if any(name.startswith("v.") for name in weights):
        return Source(init, _renamed(weights), _published_grid(weights.get("v.pos_embed"), init))
    if "patch_proj.weight" in weights:
        return _lone_file(model, path, weights)
    return _imagenet(model, config, weights)


def _imagenet(model: AST, config: ModelConfig, weights: Weights) -> Source:
    """ImageNet weights under timm's names: the projection over RGB summed (published code) or averaged (paper)."""
    name = config.init
    known = {"patch_embed.proj.weight", "patch_embed.proj.bias"} <= set(weights)
    known = known and weights["patch_embed.proj.weight"].ndim == 4
    require(known, f"{name} holds no ImageNet vision transformer under timm's names.")
    weights = {key: value for key, value in weights.items() if not key.startswith(_UNUSED)}
    projection = weights.pop("patch_embed.proj.weight")
    reduce = projection.sum if config.projection == "sum" else projection.mean
    weights["patch_proj.weight"] = reduce(dim=1, keepdim=True)
    weights["patch_proj.bias"] = weights.pop("patch_embed.proj.bias")
    side = round(max(1, _count(weights.get("pos_embed"), name) - model.prefix_tokens) ** 0.5)
    return Source(name, weights, (side, side))


def _renamed(weights: Weights) -> Weights:
    """A published `.pth`: backbone from under `v.`, the unused ImageNet heads left out."""
    own: Weights = {}
    for key, value in weights.items():
        if not key.startswith(_UNUSED):
            renamed = key.removeprefix("v.").replace("patch_embed.proj", "patch_proj")
            own[renamed.replace("mlp_head.0", "head_norm").replace("mlp_head.1", "head")] = value
    return own


def _published_grid(pos_embed: torch.Tensor | None, name: str) -> tuple[int, int]:
    """The published files: 128 bins, one stride both ways; 10, 12, 14 or 16 for 1024 frames, 10 for other lengths."""
    patches = _count(pos_embed, name) - 2
    known = {850: (10, 85), 657: (9, 73), 512: (8, 64)}
    require(
        patches > 0 and (patches in known or patches % 12 == 0),
        f"{name}: {patches} positions are of no grid of the published models.",
    )
    return known.get(patches, (12, patches // 12))


def _own_folder(folder: Path) -> Source:
    """A bundle of one member, or an epoch of a run."""
    if (folder / bundle_description.FILE).is_file():
        found = bundle_description.read_description(folder)
        require(
            len(found.entries) == 1,
            f"{folder} is an ensemble of {len(found.entries)}; start from one of its members' bundles.",
        )
        entry = found.entries[0]
        values = {"model": entry.model, "front_end": entry.front_end, "labels": found.labels}
        return _described(folder / entry.file, values, bundle_description.member_weights(folder, entry))
    require(
        (folder / checkpoint.MARKER).is_file(),
        f"model.init: {folder} is no bundle, no epoch of a run, and not in Hugging Face's format.",
    )
    identity = checkpoint.read_state(folder).get("identity")
    require(isinstance(identity, dict), f"model.init: {folder} was refused: it does not say what its weights mean.")
    path = folder / "model.safetensors"
    return _described(path, identity, require_plain(checkpoint.read_tensors(folder, "model"), str(path)))  # type: ignore[arg-type]


def _described(path: Path, identity: dict[str, Any], weights: Weights) -> Source:
    """Weights of which it is said what they mean: by a bundle or by a run."""
    try:
        labels = identity.get("labels")
        bundle_description.require_labels(labels)
        model = from_dict(ModelConfig, identity.get("model"))
        front_end = from_dict(FrontEndConfig, identity.get("front_end"))
    except UserError as error:
        raise UserError(f"model.init: {path.parent} was refused: {error}") from None
    grid = patch_grid(model, front_end.num_mel_bins, front_end.target_frames)
    return Source(str(path), weights, grid, tuple(labels or ()))


def _lone_file(model: AST, path: Path, weights: Weights) -> Source:
    """Our weights without their folder do not say their grid: they must have the model's own."""
    require("pos_embed" in weights, f"{path} holds no AST weights.")
    have, want = _count(weights["pos_embed"], str(path)) - model.prefix_tokens, model.grid[0] * model.grid[1]
    require(
        have == want,
        f"{path} has {have} positions, the model {want}, and a file alone does not say of which grid: "
        "give its folder (a bundle or an epoch) instead.",
    )
    return Source(str(path), weights, model.grid)


def load_exactly(model: AST, weights: Weights, name: str) -> None:
    """Load all of a model's weights; UserError with a list of what differs."""
    lacking = sorted(key for key in model.state_dict() if key.startswith("head") and key not in weights)
    require(not lacking, f"{name} lacks {', '.join(lacking)}.")
    _assign(model, weights, name)


def _assign(model: AST, weights: Weights, name: str) -> None:
    """Load what must be there; a new head may stay as it was made."""
    own = model.state_dict()
    wrong = [
        f"{key} is {tuple(value.shape)}, not {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    extra = sorted(set(weights) - set(own))
    missing = sorted(key for key in set(own) - set(weights) if not key.startswith("head"))
    infinite = sorted(key for key, value in weights.items() if not (value.isfinite().all() or wrong))
    found = {"other shapes": wrong, "unknown": extra, "missing": missing, "not finite": infinite}
    problems = "; ".join(f"{what}: {', '.join(items[:5])}" for what, items in found.items() if items)
    require(not problems, f"{name} does not fit the model. {problems}. Choose the backbone it was made with.")
    fitting = {key: value.to(own[key].dtype) for key, value in weights.items()}
    model.load_state_dict(fitting, strict=False, assign=model.pos_embed.is_meta)


def _from_hub(backbone: str) -> Weights:
    import timm  # noqa: PLC0415, seconds of start that only this way to begin needs

    try:
        return timm.create_model(backbone, pretrained=True).state_dict()
    except Exception as error:  # whatever the hub's client raises: the user must act on any of it
        raise UserError(
            f"ImageNet weights of {backbone} could not be had from timm's hub ({type(error).__name__}). Give a file of "
            "them with --model.init FILE, or train from scratch with --model.init scratch."
        ) from error


def _read(path: Path) -> Weights:
    require(path.is_file(), f"model.init: {path} is no file. Give scratch, imagenet, or a .safetensors or .pth file.")
    weights: Any
    if path.suffix == ".safetensors":
        weights = load_tensors(path)
    else:
        _require_honest_zip(path)
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a hostile or damaged file can raise anything; none of it may pass
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"model.init: {path} was refused: {reason}") from error
    if isinstance(weights, dict):
        weights = weights.get("model", weights)
    plain = require_plain(weights, f"model.init: {path}")
    if any(name.startswith("audio_spectrogram_transformer.") for name in plain):
        raise UserError(f"model.init: {path} is in Hugging Face's format; give its folder, {path.parent}.")
    return plain


def _require_honest_zip(path: Path) -> None:
    """What `torch.save` writes is a zip file of names below one folder, nothing packed; another may unpack without end.

    Raises:
        UserError: it is a zip file that `torch.save` did not write.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"model.init: {path} was refused: {error}") from None
    out = [entry.filename for entry in entries if entry.filename.startswith("/") or ".." in entry.filename.split("/")]
    require(not out, f"model.init: {path} was refused: it names files outside itself, {out[:1]!a}.")
    program = any(entry.filename.endswith("/constants.pkl") for entry in entries)
    require(not program, f"model.init: {path} was refused: it is TorchScript, a program. Save its state_dict instead.")
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    whole = sum(entry.file_size for entry in entries) <= path.stat().st_size
    require(whole and not packed, f"model.init: {path} was refused: it would unpack to more than its size.")
