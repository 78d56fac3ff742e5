"""Initial weights: ImageNet's (timm, by hub or file) and AST checkpoints (published .pth, or our safetensors).

The only place that unpickles, with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from ast_core.config import require
from ast_core.errors import UserError
from ast_core.model import AST

Weights = dict[str, torch.Tensor]
_UNUSED = ("v.head.", "v.head_dist.", "head.", "head_dist.", "fc_norm.")
"""ImageNet's heads: they get no gradient in AST."""


def initialise(model: AST, init: str, backbone: str) -> None:
    """Load initial weights into a fresh model, in place.

    Args:
        model: as built.
        init: `scratch`, `imagenet`, or a file of ImageNet or AST weights, told apart by their names.
        backbone: timm's name, for `imagenet`.

    Raises:
        UserError: the hub cannot be reached, the file is missing, or its tensors do not fit.
    """
    if init == "scratch":
        return
    weights = _from_hub(backbone) if init == "imagenet" else _read(Path(init))
    if any(name.removeprefix("module.").startswith("v.") for name in weights):
        load_published(model, weights, init)
    elif "patch_proj.weight" in weights:
        _load_own(model, weights, init)
    else:
        load_imagenet(model, weights, init)


def load_imagenet(model: AST, weights: Weights, name: str) -> None:
    """ImageNet weights under timm's names: projection summed over RGB, positional grid cut or stretched."""
    require("patch_embed.proj.weight" in weights, f"{name} holds no ImageNet vision transformer under timm's names.")
    weights = dict(weights)
    weights["patch_proj.weight"] = weights.pop("patch_embed.proj.weight").sum(dim=1, keepdim=True)
    weights["patch_proj.bias"] = weights.pop("patch_embed.proj.bias")
    side = round((weights["pos_embed"].shape[1] - model.prefix_tokens) ** 0.5)
    weights["pos_embed"] = adapt_positions(weights["pos_embed"], (side, side), model.grid, model.prefix_tokens)
    _assign(model, {key: value for key, value in weights.items() if not key.startswith(_UNUSED)}, name)


def load_published(model: AST, weights: Weights, name: str) -> None:
    """A published AST `.pth`: `module.` stripped, backbone under `v.`, the head kept if the classes are as many."""
    plain = {key.removeprefix("module."): value for key, value in weights.items()}
    own: Weights = {}
    for key, value in plain.items():
        if not key.startswith(_UNUSED):
            renamed = key.removeprefix("v.").replace("patch_embed.proj", "patch_proj")
            own[renamed.replace("mlp_head.0", "head_norm").replace("mlp_head.1", "head")] = value
    _load_own(model, own, name)


def adapt_positions(
    pos_embed: torch.Tensor, source: tuple[int, int], target: tuple[int, int], prefix_tokens: int
) -> torch.Tensor:
    """Positional embedding of another grid: time first, then frequency; centre cut if smaller, else bilinear.

    Args:
        pos_embed: [1, prefix + source patches, E].
        source: grid it was made for, frequency and time.
        target: grid that is wanted.
        prefix_tokens: tokens before the patches; copied.

    Returns:
        [1, prefix + target patches, E].
    """
    prefix, patches = pos_embed[:, :prefix_tokens], pos_embed[:, prefix_tokens:]
    grid_1EFT = patches.reshape(1, *source, -1).permute(0, 3, 1, 2)
    grid_1EFT = _fit(grid_1EFT, 3, target[1])
    grid_1EFT = _fit(grid_1EFT, 2, target[0])
    return torch.cat([prefix, grid_1EFT.flatten(2).transpose(1, 2)], dim=1)


def _fit(grid_1EFT: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    have = grid_1EFT.shape[axis]
    if size <= have:
        return grid_1EFT.narrow(axis, have // 2 - size // 2, size)
    shape = (grid_1EFT.shape[2], size) if axis == 3 else (size, grid_1EFT.shape[3])
    return functional.interpolate(grid_1EFT, shape, mode="bilinear", align_corners=False)


def _load_own(model: AST, weights: Weights, name: str) -> None:
    weights = dict(weights)
    require("pos_embed" in weights and "head.weight" in weights, f"{name} holds no AST weights.")
    patches = weights["pos_embed"].shape[1] - model.prefix_tokens
    grid = (12, patches // 12) if patches % 12 == 0 else _nearest_grid(model, patches, name)
    if patches != model.grid[0] * model.grid[1]:
        weights["pos_embed"] = adapt_positions(weights["pos_embed"], grid, model.grid, model.prefix_tokens)
    if weights["head.weight"].shape != model.head.weight.shape:
        weights = {key: value for key, value in weights.items() if not key.startswith("head")}
    _assign(model, weights, name)


def _nearest_grid(model: AST, patches: int, name: str) -> tuple[int, int]:
    freq = next((f for f in (8, 9, 10, 11, model.grid[0]) if patches % f == 0), 0)
    require(
        freq > 0, f"{name}: {patches} positions are no grid of 8 to 12 frequency rows; its patches cannot be placed."
    )
    return freq, patches // freq


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
    infinite = sorted(key for key, value in weights.items() if not torch.isfinite(value).all())
    found = {"other shapes": wrong, "unknown": extra, "missing": missing, "not finite": infinite}
    problems = "; ".join(f"{what}: {', '.join(items[:5])}" for what, items in found.items() if items)
    require(not problems, f"{name} does not fit the model. {problems}. Choose the backbone it was made with.")
    model.load_state_dict(weights, strict=False)


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
    try:
        weights = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a hostile or damaged file can raise anything; none of it may pass
        raise UserError(f"model.init: {path} was refused: {type(error).__name__}: {str(error)[:200]}") from error
    weights = weights.get("model", weights)
    require(
        bool(weights) and all(isinstance(value, torch.Tensor) for value in weights.values()),
        f"model.init: {path} is not a flat table of tensors.",
    )
    return dict(weights)
