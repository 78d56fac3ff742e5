"""Versions of a registered model without a training: bundles with random weights in a registry of sqlite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import bundles
from mlflow import MlflowClient
from servers import s3

from pipeline.tracking import mlflow_store, registry

MODEL = "served"


def add_versions(folder: Path, store: str, count: int) -> list[Path]:
    """Register bundles with different weights, and make the first one champion.

    Args:
        folder: folder of the bundles.
        store: tracking URI.
        count: number of versions.

    Returns:
        Folder of the bundle of each version.
    """
    mlflow_store.open_store(store)
    client = MlflowClient()
    client.create_registered_model(MODEL)
    made = []
    for number in range(count):
        bundles.write_run(folder / str(number), (0,), weights=number)
        made.append(folder / str(number) / "bundles" / "seed-0")
        client.create_model_version(MODEL, str(made[-1]))
    set_champion(store, 1)
    return made


def upload_version(bundle: Path, source: str, environment: Mapping[str, str]) -> None:
    """Copy a bundle to an object store, and register it in the store that is open as the next version.

    Args:
        bundle: folder of the bundle.
        source: URI for the copy, `s3://BUCKET/KEY`.
        environment: variables with which clients reach the object store.
    """
    bucket, _, key = source.removeprefix("s3://").partition("/")
    with s3(environment) as client:
        for path in bundle.iterdir():
            client.upload_file(str(path), bucket, f"{key}/{path.name}")
    MlflowClient().create_model_version(MODEL, source)


def set_champion(store: str, version: int) -> None:
    """Point the alias of the best version at a version."""
    mlflow_store.open_store(store)
    registry.set_alias(MODEL, registry.CHAMPION, version)
