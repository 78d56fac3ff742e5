"""Models of the registry for `ast_core.load`, which finds this module by the entry points in pyproject.toml."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.tracking import mlflow_environment  # noqa: F401  # before mlflow, which reads it

# isort: split
import mlflow

from ast_core.errors import require
from pipeline.tracking.mlflow_store import sqlite_file
from pipeline.tracking.registry import bundle_folder
from pipeline.tracking.store_uri import choose_store

_REGISTRY = "MLFLOW_REGISTRY_URI"


def fetch_model(address: str) -> Path:
    """Return the folder of the bundle that a registered model holds, downloaded if it is on another machine.

    The store is the one that MLflow uses in this process or the environment names, else `work/mlflow.db`.

    Args:
        address: `models:/NAME@champion`, `models:/NAME/3` or `runs:/ID/NAME`.

    Raises:
        UserError: the store or the model does not exist, cannot be reached, or holds another kind of model.
    """
    with _restore_addresses() as current:
        store = choose_store(current, "MLflow's tracking URI")
        file = sqlite_file(store)
        require(
            file is None or file.is_file(),
            f"{address} cannot be loaded: the MLflow store {file} does not exist. Set MLFLOW_TRACKING_URI, or call "
            "mlflow.set_tracking_uri, with the address of the store that has the model.",
        )
        return bundle_folder(address, store)


@contextlib.contextmanager
def _restore_addresses() -> Iterator[str]:
    """Yield the tracking URI of this process, "" if it is not set; set it and the registry's again at the end.

    The caller's own runs go on to the store that they had.
    """
    tracking = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    registry = os.environ.get(_REGISTRY)
    try:
        yield tracking or ""
    finally:
        mlflow.set_tracking_uri(tracking)  # type: ignore[arg-type]  # None unsets it
        mlflow.set_registry_uri(registry)  # type: ignore[arg-type]
        if registry is None:
            os.environ.pop(_REGISTRY, None)  # which MLflow sets, and does not unset
