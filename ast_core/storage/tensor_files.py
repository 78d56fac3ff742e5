"""Tables of tensors as safetensors files: the one way to write them, and to read them without trusting them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ast_core.errors import DamagedError, require
from ast_core.storage.atomic_files import atomic_write

Tensors = Mapping[str, torch.Tensor]
BESIDE = 1 << 20
"""Bytes that are kept free for the JSON beside tensors, so that no room ends between them and their marker."""


def bytes_of(tensors: Tensors) -> int:
    """Bytes that a file of them needs, but for its header."""
    return sum(value.nbytes for value in tensors.values())


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Commit a table of tensors, from any device.

    Args:
        path: of the safetensors file.
        tensors: by name; none may share memory with another.
        metadata: texts for its header.

    Raises:
        NoRoomError: the disk is full.
        UserError: it cannot be written.
    """
    with atomic_write(path, bytes_of(tensors)) as temporary:
        try:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))  # safetensors tells the system's number only so
            number = int(code[1]) if code else 0
            raise OSError(number, os.strerror(number) if code else str(error)) from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU.

    Raises:
        DamagedError: the file is missing or not safetensors.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise DamagedError(f"{path} cannot be read: {error}.") from error


def require_plain(weights: Any, name: str) -> dict[str, torch.Tensor]:
    """A table of ordinary tensors: floating point, dense, in this process's memory, as large as their bytes.

    What unpickles safely may still be no such thing: one number that is shown as a terabyte by strides of 0, or a
    tensor without bytes.

    Raises:
        UserError: it is something else.
    """
    flat = isinstance(weights, dict) and bool(weights)
    require(
        flat and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items()),
        f"{name} was refused: it is not a flat table of tensors.",
    )
    odd = sorted(key for key, value in weights.items() if not _is_plain(value))
    require(not odd, f"{name} was refused: not plain tensors of floating point: {', '.join(odd[:5])}.")
    return dict(weights)


def _is_plain(value: torch.Tensor) -> bool:
    dense = value.layout == torch.strided and value.device.type == "cpu" and value.is_floating_point()
    return dense and value.nbytes <= value.untyped_storage().nbytes()
