"""Pre-training checkpoints of SSAST: an AST, its pretext heads and the size of its input.

The published code is https://github.com/YuanGongND/ssast. It saves the whole pre-training model, which has more than an
AST: the heads of the two pretext tasks, the embedding of masked patches, and integers that describe the input.
Fine-tuning needs only the integers, for the grid of patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ast_core.errors import require

PRETEXT = ("cpredlayer", "gpredlayer", "mask_embed")
"""Modules and parameters that only pre-training uses."""
BOOKKEEPING = (
    "p_input_fdim", "p_input_tdim", "p_fshape", "p_tshape", "p_fstride", "p_tstride", "p_f_dim", "p_t_dim",
    "num_patches",
)  # fmt: skip
"""Numbers that the published code or its forks store next to the weights."""
LARGEST_INPUT = 1 << 20
"""Largest input size to accept from a file, which is untrusted input."""


def split_pretext(table: Any) -> tuple[Any, dict[str, Any]]:
    """Split what an AST does not have from the tensors of a pre-training checkpoint.

    Args:
        table: content of a file, which is untrusted input. Anything that does not have SSAST's names is returned as it
            is.

    Returns:
        The remaining tensors, and the ignored values by name. The names have no `module.`, the prefix of DataParallel.
    """
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        return table, {}
    names = {key: key.removeprefix("module.") for key in table}
    if not any(name.startswith("v.") for name in names.values()):
        return table, {}
    ignored = {name: table[key] for key, name in names.items() if _head(name) in {*PRETEXT, *BOOKKEEPING}}
    return {key: table[key] for key, name in names.items() if name not in ignored}, ignored


def describe_pretext(ignored: Mapping[str, Any]) -> str:
    """Return the ignored names for the log, such as `cpredlayer (4 tensors), mask_embed, p_input_fdim`."""
    counts: dict[str, int] = {}
    for name in sorted(ignored):
        counts[_head(name)] = counts.get(_head(name), 0) + 1
    return ", ".join(f"{head} ({count} tensors)" if count > 1 else head for head, count in counts.items())


def pretraining_grid(ignored: Mapping[str, Any], patch: torch.Size, name: str) -> tuple[int, int] | None:
    """Return the patches in frequency and time of a pre-training, in which patches do not overlap.

    Args:
        ignored: ignored values by name, of `split_pretext`.
        patch: height and width of a patch.
        name: file, for errors.

    Returns:
        The grid, or None if the file does not store the size of its input.

    Raises:
        UserError: the stored size is not a positive number, or is smaller than a patch.
    """
    if not {"p_input_fdim", "p_input_tdim"} <= set(ignored):
        return None
    sizes = [_read_size(key, ignored[key], name) for key in ("p_input_fdim", "p_input_tdim")]
    freq, time = (size // side for size, side in zip(sizes, patch, strict=True))
    require(
        freq > 0 and time > 0,
        f"{name} was refused: its p_input_fdim and p_input_tdim are {sizes[0]} and {sizes[1]}, smaller than its "
        f"patches of {patch[0]} x {patch[1]}.",
    )
    return freq, time


def _head(name: str) -> str:
    return name.partition(".")[0]


def _read_size(key: str, value: Any, name: str) -> int:
    """Read an input size; forks of the code store a number instead of a tensor."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 and value.device.type == "cpu" and _is_dense(value) else None
    whole = isinstance(value, int | float) and value == value // 1 and 0 < value <= LARGEST_INPUT
    require(whole, f"{name} was refused: its {key} is not one whole number from 1 to {LARGEST_INPUT}.")
    return int(value)


def _is_dense(value: torch.Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_complex()
