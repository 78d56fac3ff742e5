"""Write and read tables of tensors as safetensors files. The files that are read are untrusted input."""

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
JSON_BYTES = 1 << 20
"""Bytes to keep free for the JSON files next to tensors, so that the disk is not full before the marker is written."""


def bytes_of(tensors: Tensors) -> int:
    """Return the bytes that a file of tensors needs, without its header."""
    return sum(value.nbytes for value in tensors.values())


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Commit a table of tensors from any device.

    Args:
        path: safetensors file to write.
        tensors: tensors by name; no two may share memory.
        metadata: texts for the file's header.

    Raises:
        NoRoomError: the disk is full.
        UserError: the file cannot be written.
    """
    with atomic_write(path, bytes_of(tensors)) as temporary:
        try:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))  # safetensors has the system's number only in its text
            number = int(code[1]) if code else 0
            raise OSError(number, os.strerror(number) if code else str(error)) from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a file to the CPU.

    Raises:
        DamagedError: the file is missing or not safetensors.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise DamagedError(f"{path} cannot be read: {error}. Fetch or make it again.") from error


def require_plain(weights: Any, name: str) -> dict[str, torch.Tensor]:
    """Return a table of tensors after a check that all are plain: floating point, dense, on the CPU, with all bytes.

    Tensors from a safe unpickler may still be hostile: strides of 0 can show one number as a terabyte, and a tensor may
    have no bytes.

    Raises:
        UserError: a value is not a plain tensor.
    """
    flat = isinstance(weights, dict) and bool(weights)
    require(
        flat and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items()),
        f"{name} was refused: it is not a flat table of tensors. Give a file of weights only.",
    )
    odd = sorted(key for key, value in weights.items() if not _is_plain(value))
    require(not odd, f"{name} was refused: these are not plain floating-point tensors: {', '.join(odd[:5])}.")
    return dict(weights)


def _is_plain(value: torch.Tensor) -> bool:
    dense = value.layout == torch.strided and value.device.type == "cpu" and value.is_floating_point()
    return dense and value.nbytes <= value.untyped_storage().nbytes()
