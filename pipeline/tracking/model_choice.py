"""The models that a stage takes: a folder, a model of the registry, or a model of Hugging Face's hub.

Importing this module loads neither MLflow nor torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ast_core.weights.hub.hub_address import is_hub_address, parse_hub_address

REGISTERED = ("models:/", "runs:/")
"""Beginnings of the addresses of MLflow's registry."""


def is_model_address(model: str) -> bool:
    """Return whether a model has an address, and is no folder.

    Raises:
        UserError: the address of a model of the hub has another form.
    """
    if is_hub_address(model):
        parse_hub_address(model)
        return True
    return model.startswith(REGISTERED)


@contextlib.contextmanager
def open_model_folder(model: str, store: str) -> Iterator[Path]:
    """Yield the folder of a model while the context is open, and then remove what was downloaded from the registry.

    A model of the hub stays in the hub's cache.

    Args:
        model: as `fetch_model_folder` takes it.
        store: MLflow tracking URI.

    Raises:
        UserError: the model does not exist, cannot be downloaded, or does not hold exactly one bundle.
    """
    if not model.startswith(REGISTERED):
        yield fetch_model_folder(model, store)
        return
    from pipeline.tracking.registry import open_bundle  # noqa: PLC0415  # MLflow takes 100 MB

    with open_bundle(model, store) as folder:
        yield folder


def fetch_model_folder(model: str, store: str) -> Path:
    """Return the folder of a model; download it if it is not on this machine.

    Args:
        model: a folder, `models:/NAME@champion`, `models:/NAME/3`, `runs:/ID/NAME`, `hf:ORG/NAME` or
            `hf:ORG/NAME@REVISION`. A model of the hub is in Hugging Face's format, all others are bundles.
        store: MLflow tracking URI.

    Raises:
        UserError: the model does not exist, cannot be downloaded, or does not hold exactly one bundle.
    """
    if is_hub_address(model):
        from ast_core.weights.hub.hub_files import fetch_hub_model  # noqa: PLC0415  # torch takes a second

        return fetch_hub_model(parse_hub_address(model)).folder
    if model.startswith(REGISTERED):
        from pipeline.tracking.registry import bundle_folder  # noqa: PLC0415  # MLflow takes 100 MB

        return bundle_folder(model, store)
    return Path(model).absolute()
