"""Initial weights: of ImageNet (timm's hub or file) and of AST (published .pth, our folders, Hugging Face's folders).

Only this module unpickles, with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import logging
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
from ast_core.weights import bundle_description, checkpoint, huggingface, ssast
from ast_core.weights.hub.hub_address import is_hub_address, parse_hub_address
from ast_core.weights.hub.hub_files import fetch_hub_model
from ast_core.weights.positions import adapt_positions

LOG = logging.getLogger(__name__)
Weights = dict[str, torch.Tensor]
"""Tensors by name."""
_UNUSED = ("v.head.", "v.head_dist.", "head.", "head_dist.", "fc_norm.")
"""Prefixes of ImageNet's heads, which AST does not use."""
PUBLISHED_BINS = 128
"""Mel bins of every published AST and SSAST."""


@dataclass(frozen=True)
class Source:
    """Weights under our names, and the grid of patches that their positions belong to."""

    name: str
    """File, folder or hub name, for errors."""
    weights: Weights
    """Tensors under our names."""
    grid: tuple[int, int]
    """Number of patches in frequency and in time."""
    labels: tuple[str, ...] | None = None
    """Labels of the head's rows; None if they are unknown."""


def initialise(model: AST, config: ModelConfig, labels: Sequence[str] | None = None) -> None:
    """Load initial weights into a new model, in place, and adapt positions, input channels and head.

    Args:
        model: model built from `config`.
        config: `init` names the source (`scratch`, `imagenet`, `hf:ORG/NAME`, a file or a folder); `positions` and
            `projection` say how to adapt its weights.
        labels: labels of the model. If the source has other labels, the head keeps its random weights.

    Raises:
        UserError: the hub cannot be reached, the source does not exist, or its tensors do not fit.
    """
    if config.init == "scratch":
        return
    source = _read_source(model, config)
    weights = dict(source.weights)
    _count_positions(weights.get("pos_embed"), source.name)
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
    """Return whether the source's positions match its grid and the model's prefix tokens.

    If they do not, `_assign` reports which shapes differ.
    """
    positions = _count_positions(source.weights["pos_embed"], source.name)
    return positions == source.grid[0] * source.grid[1] + model.prefix_tokens


def _count_positions(pos_embed: torch.Tensor | None, name: str) -> int:
    """Return the number of positions, prefix tokens included."""
    fits = pos_embed is not None and pos_embed.ndim == 3 and len(pos_embed) == 1
    require(fits, f"{name} was refused: it has no positional embedding of shape [1, positions, width].")
    return int(pos_embed.shape[1])  # type: ignore[union-attr]


def _read_source(model: AST, config: ModelConfig) -> Source:
    """Read the weights that `init` names; their files and tensor names show which format they have."""
    init = config.init
    if init == "imagenet":
        return _convert_imagenet(model, config, _download_imagenet(config.backbone))
    path = fetch_hub_model(parse_hub_address(init)).folder if is_hub_address(init) else Path(init)
    if path.is_dir() and huggingface.is_folder(path):
        found = huggingface.read_folder(path)
        grid = patch_grid(found.model, found.front_end.num_mel_bins, found.front_end.target_frames)
        return Source(init, found.weights, grid, found.labels)
    if path.is_dir():
        return _read_own_folder(path)
    require(
        path.is_file(),
        f"model.init: {path} does not exist or is not a file. "
        "Give scratch, imagenet, hf:ORG/NAME, a folder, or a .safetensors or .pth file.",
    )
    weights, ignored = _read_file(path, f"model.init: {path}")
    if _is_published(weights):
        return Source(init, _rename_published(weights), _published_grid(weights, ignored, init))
    if "patch_proj.weight" in weights:
        return _source_of_single_file(model, path, weights)
    return _convert_imagenet(model, config, weights)


def read_published(path: Path) -> Source:
    """Read a checkpoint of AST's published code, which is untrusted input.

    Raises:
        UserError: the file is not such a checkpoint.
    """
    weights, ignored = _read_file(path, str(path))
    require(
        _is_published(weights),
        f"{path} is no checkpoint of AST's published code: no tensor has its names, which begin with v. "
        "Give another file, or the folder of a bundle.",
    )
    return Source(str(path), _rename_published(weights), _published_grid(weights, ignored, str(path)))


def _is_published(weights: Weights) -> bool:
    """Return whether tensors have the names of AST's published code."""
    return any(name.startswith("v.") for name in weights)


def _convert_imagenet(model: AST, config: ModelConfig, weights: Weights) -> Source:
    """Convert ImageNet weights from timm's names to ours.

    The projection of the three colours is summed, as in AST's published code, or averaged, as in the paper.
    """
    name = config.init
    known = {"patch_embed.proj.weight", "patch_embed.proj.bias"} <= set(weights)
    known = known and weights["patch_embed.proj.weight"].ndim == 4
    require(
        known,
        f"{name} holds no ImageNet vision transformer under timm's names, and no AST weights. "
        "Give another file with --model.init FILE.",
    )
    weights = {key: value for key, value in weights.items() if not key.startswith(_UNUSED)}
    projection = weights.pop("patch_embed.proj.weight")
    reduce = projection.sum if config.projection == "sum" else projection.mean
    weights["patch_proj.weight"] = reduce(dim=1, keepdim=True)
    weights["patch_proj.bias"] = weights.pop("patch_embed.proj.bias")
    side = round(max(1, _count_positions(weights.get("pos_embed"), name) - model.prefix_tokens) ** 0.5)
    return Source(name, weights, (side, side))


def _rename_published(weights: Weights) -> Weights:
    """Rename the tensors of a published `.pth` to our names, without the unused ImageNet heads."""
    own: Weights = {}
    for key, value in weights.items():
        if not key.startswith(_UNUSED):
            renamed = key.removeprefix("v.").replace("patch_embed.proj", "patch_proj")
            own[renamed.replace("mlp_head.0", "head_norm").replace("mlp_head.1", "head")] = value
    return own


def _published_grid(weights: Weights, ignored: dict[str, Any], name: str) -> tuple[int, int]:
    """Return the grid of a published file: SSAST's pre-training stores its input, all other files store nothing.

    All published AST models have 128 bins and one stride for both axes: 10, 12, 14 or 16 for 1024 frames, and 10 for
    other lengths. SSAST's frames are patches as high as the spectrogram.
    """
    prefix = 2 if "v.dist_token" in weights else 1
    patches = _count_positions(weights.get("v.pos_embed"), name) - prefix
    projection = weights.get("v.patch_embed.proj.weight")
    if projection is not None and projection.ndim == 4:
        grid = ssast.pretraining_grid(ignored, projection.shape[2:], name)
        if grid is not None:
            return grid
        if projection.shape[2] == PUBLISHED_BINS:
            return 1, patches
    known = {850: (10, 85), 657: (9, 73), 512: (8, 64)}
    require(
        patches > 0 and (patches in known or patches % 12 == 0),
        f"{name} was refused: {patches} positions fit no grid of the published models. They have 850, 657, 512, or a "
        "multiple of 12 positions.",
    )
    return known.get(patches, (12, patches // 12))


def _read_own_folder(folder: Path) -> Source:
    """Read a bundle of one member, or an epoch of a run."""
    if (folder / bundle_description.FILE).is_file():
        found = bundle_description.read_description(folder)
        require(
            len(found.members) == 1,
            f"{folder} is an ensemble of {len(found.members)} models; start from the bundle of one of its members.",
        )
        entry = found.members[0]
        values = {"model": entry.model, "front_end": entry.front_end, "labels": found.labels}
        return _source_of_identity(folder / entry.file, values, bundle_description.read_member_weights(folder, entry))
    require(
        (folder / checkpoint.MARKER).is_file(),
        f"model.init: {folder} is neither a bundle, nor an epoch of a run, nor a folder in Hugging Face's format. "
        "Give such a folder, or a .safetensors or .pth file.",
    )
    identity = checkpoint.read_state(folder).get("identity")
    require(
        isinstance(identity, dict),
        f"model.init: {folder} was refused: its {checkpoint.MARKER} has no identity, which describes the weights.",
    )
    path = folder / "model.safetensors"
    return _source_of_identity(path, identity, require_plain(checkpoint.read_tensors(folder, "model"), str(path)))  # type: ignore[arg-type]


def _source_of_identity(path: Path, identity: dict[str, Any], weights: Weights) -> Source:
    """Return weights as a source, with labels and grid from the identity that a bundle or a run stores.

    The identity is untrusted input.
    """
    try:
        labels = identity.get("labels")
        bundle_description.require_labels(labels)
        model = from_dict(ModelConfig, identity.get("model"))
        front_end = from_dict(FrontEndConfig, identity.get("front_end"))
    except UserError as error:
        raise UserError(f"model.init: {path.parent} was refused: {error}") from None
    grid = patch_grid(model, front_end.num_mel_bins, front_end.target_frames)
    return Source(str(path), weights, grid, tuple(labels or ()))


def _source_of_single_file(model: AST, path: Path, weights: Weights) -> Source:
    """Return our weights without their folder as a source.

    The file alone does not store the grid, so the weights must have the grid of the model.
    """
    require("pos_embed" in weights, f"{path} holds no AST weights: pos_embed is missing. Give another file.")
    have, want = _count_positions(weights["pos_embed"], str(path)) - model.prefix_tokens, model.grid[0] * model.grid[1]
    require(
        have == want,
        f"{path} has {have} positions, but the model has {want}. A single file does not store its grid, so its "
        "positions cannot be adapted: give its folder (a bundle or an epoch) instead.",
    )
    return Source(str(path), weights, model.grid)


def load_exactly(model: AST, weights: Weights, name: str) -> None:
    """Load all weights of a model, in place.

    Raises:
        UserError: tensors are missing, unknown, not finite or have other shapes; the text lists them.
    """
    missing = sorted(key for key in model.state_dict() if key.startswith("head") and key not in weights)
    require(not missing, f"{name} does not fit the model: it lacks {', '.join(missing)}. Choose weights with a head.")
    _assign(model, weights, name)


def _assign(model: AST, weights: Weights, name: str) -> None:
    """Load weights after checking names, shapes and values; a head that is missing keeps its random weights."""
    own = model.state_dict()
    _require_patch_shape(weights.get("patch_proj.weight"), own["patch_proj.weight"], name)
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
    require(not problems, f"{name} does not fit the model. {problems}. Choose the backbone it was trained with.")
    fitting = {key: value.to(own[key].dtype) for key, value in weights.items()}
    model.load_state_dict(fitting, strict=False, assign=model.pos_embed.is_meta)


def _require_patch_shape(found: torch.Tensor | None, own: torch.Tensor, name: str) -> None:
    """Raise UserError if only the height and width of the patches differ: other settings fit these weights."""
    if found is not None and found.ndim == 4 and found.shape[:2] == own.shape[:2]:
        (height, width), (own_height, own_width) = found.shape[2:], own.shape[2:]
        require(
            (height, width) == (own_height, own_width),
            f"{name} has patches of {height} x {width} (mel bins x frames), but the model has {own_height} x "
            f"{own_width}: set --model.patch-freq {height} --model.patch-time {width}, and strides up to that.",
        )


def _download_imagenet(backbone: str) -> Weights:
    """Download ImageNet weights from timm's hub, under timm's names."""
    import timm  # noqa: PLC0415, the import takes seconds, and only this source needs it

    try:
        return timm.create_model(backbone, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many types, and the user must act on each
        raise UserError(
            f"ImageNet weights of {backbone} could not be downloaded from timm's hub ({type(error).__name__}). Give a "
            "file of them with --model.init FILE, or train from scratch with --model.init scratch."
        ) from error


def _read_file(path: Path, name: str) -> tuple[Weights, dict[str, Any]]:
    """Read a table of tensors from a file of untrusted input; nothing in the file is run.

    Args:
        path: file to read.
        name: file, for errors.

    Returns:
        The tensors without DataParallel's prefix, and the values of SSAST's pre-training that an AST does not have.
    """
    weights: Any
    if path.suffix == ".safetensors":
        weights = load_tensors(path)
    else:
        _require_plain_zip(path, name)
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a hostile or damaged file can raise any type
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"{name} was refused: {reason}") from error
    if isinstance(weights, dict):
        weights = weights.get("model", weights)
    weights, ignored = ssast.split_pretext(weights)
    if ignored:
        LOG.info(
            "%s is a pre-training checkpoint of SSAST; these are ignored: %s.", path, ssast.describe_pretext(ignored)
        )
    plain = require_plain(weights, name)
    if any(key.startswith("audio_spectrogram_transformer.") for key in plain):
        raise UserError(f"{name} is in Hugging Face's format; give its folder, {path.parent}.")
    return {key.removeprefix("module."): value for key, value in plain.items()}, ignored


def _require_plain_zip(path: Path, name: str) -> None:
    """Refuse a zip file that `torch.save` did not write.

    `torch.save` stores its entries uncompressed, all under one folder. A compressed entry could unpack to any size.

    Raises:
        UserError: an entry is compressed, lies outside the file's folder, or is a program.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"{name} was refused: {error}") from None
    out = [entry.filename for entry in entries if entry.filename.startswith("/") or ".." in entry.filename.split("/")]
    require(not out, f"{name} was refused: it names files outside itself, {out[:1]!a}.")
    program = any(entry.filename.endswith("/constants.pkl") for entry in entries)
    require(not program, f"{name} was refused: it is TorchScript, a program. Save its state_dict instead.")
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    fits = sum(entry.file_size for entry in entries) <= path.stat().st_size
    require(
        fits and stored,
        f"{name} was refused: it would unpack to more than its size. Save it with torch.save.",
    )
