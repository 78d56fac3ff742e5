"""Find out what a path or an address holds, and load it as a bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from ast_core.errors import UserError, require
from ast_core.weights import bundle_description, huggingface
from ast_core.weights.bundle import Bundle
from ast_core.weights.hub.hub_address import is_hub_address, parse_hub_address
from ast_core.weights.hub.hub_files import fetch_hub_model
from ast_core.weights.published import load_published

GROUP = "ast_core.sources"
"""Entry point group of the packages that open addresses such as `models:/NAME@champion`.

The name of an entry point is the scheme of the addresses, here `models`. Its value is a function that takes the
complete address and returns the folder of a bundle.
"""
ACCEPTED = (
    "Give the folder of a bundle, a folder in Hugging Face's AST format, a model of its hub such as hf:ORG/NAME, a "
    "published checkpoint (.pth), or a registered model such as models:/NAME@champion."
)
"""Sources of a model, for errors."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def load_bundle(source: str | os.PathLike[str], labels: Sequence[str] | str | os.PathLike[str] | None = None) -> Bundle:
    """Load a model as a bundle.

    Args:
        source: path or address of the model, as `ast_core.load` takes it.
        labels: names of the classes of a published checkpoint, or a CSV file with them.

    Raises:
        UserError: the source does not exist or is not a model, or it has labels of its own.
        DamagedError: a file of a bundle has another hash than the bundle says.
    """
    kind = type(source).__name__
    require(isinstance(source, str | os.PathLike), f"The model to load is of type {kind}, not a path. {ACCEPTED}")
    text = os.fspath(source)
    require(bool(text), f"The path of the model to load is empty. {ACCEPTED}")
    path = _find_path(text)
    if path.is_dir():
        _require_model(path)
        require(labels is None, f"{source} has labels of its own; leave the argument `labels` out.")
        return Bundle.load(path)
    require(path.exists(), f"{source} does not exist. {ACCEPTED}")
    if path.name in {bundle_description.FILE, huggingface.CONFIG, huggingface.WEIGHTS}:
        raise UserError(f"{source} is one file of a model; give its folder, {path.parent}.")
    require(path.suffix in {".pth", ".pt"}, f"{source} is not a model: its name does not end in .pth. {ACCEPTED}")
    return load_published(path, labels)


def _find_path(source: str) -> Path:
    """Return the path of a source; what has an address is downloaded."""
    if is_hub_address(source):
        return fetch_hub_model(parse_hub_address(source)).folder
    address = _SCHEME.match(source)
    return _fetch_folder(source, address[1].lower()) if address else Path(source)


def _fetch_folder(address: str, scheme: str) -> Path:
    """Return the folder of a bundle that has an address, through the entry point of its scheme."""
    found = entry_points(group=GROUP)
    known = sorted(f"{own.name}:/" for own in found)
    opener = next((own for own in found if own.name == scheme), None)
    if opener is None:
        raise UserError(
            f"{address} cannot be opened: no installed package opens addresses that begin with {scheme}:/ (they open "
            f"{', '.join(known) or 'nothing'}). Install the package ast-pipeline for models:/ and runs:/, or give a "
            "folder or a .pth file."
        )
    try:
        fetch = opener.load()
    except ModuleNotFoundError as error:
        missing = (error.name or opener.module).partition(".")[0]
        raise UserError(
            f"{address} cannot be opened: that needs the package {missing}, which is not installed. Install it, or "
            "give the folder of a bundle."
        ) from error
    return Path(fetch(address))


def _require_model(folder: Path) -> None:
    """Raise UserError unless a folder holds a bundle or a model in Hugging Face's format; say what it may be."""
    if (folder / bundle_description.FILE).is_file() or huggingface.is_folder(folder):
        return
    own = sorted(path.parent for path in folder.glob(f"bundles/*/{bundle_description.FILE}"))
    if own:
        raise UserError(f"{folder} is the folder of a run; give one of its bundles: {', '.join(map(str, own))}.")
    if (folder / huggingface.CONFIG).is_file():
        raise UserError(
            f"{folder} has {huggingface.CONFIG} and no {huggingface.WEIGHTS}. Save the model again with "
            "save_pretrained(FOLDER, safe_serialization=True)."
        )
    raise UserError(
        f"{folder} holds no model: it has neither {bundle_description.FILE} nor {huggingface.CONFIG} with "
        f"{huggingface.WEIGHTS}. {ACCEPTED}"
    )
