"""`ast_core.load` opens the models of the registry, and leaves the caller's own MLflow as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from bundles import write_run
from conftest import NewStore

import ast_core
from ast_core.errors import UserError
from ast_core.weights.bundle import Bundle
from pipeline.cli.stages import RegisterSettings
from pipeline.register import register
from pipeline.tracking.model_addresses import fetch_model

MODEL = "models:/ast-test@champion"
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


@pytest.fixture(autouse=True)
def unset_addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test as a new process does: with no store set."""
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]


def forget_addresses() -> None:
    """Unset the store that a stage opened in this process."""
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    os.environ.pop("MLFLOW_REGISTRY_URI", None)


@pytest.mark.slow
def test_a_registered_model_predicts_as_its_bundle_from_every_way_to_name_the_store(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", seeds=(0,))
    store = new_store(tmp_path / "work")
    register(RegisterSettings(run_dir=tmp_path / "run", tracking=store, experiment="test", model_name="ast-test"))
    wave_N = np.random.default_rng(0).normal(0, 0.1, 9_000).astype(np.float32)
    own = ast_core.load(tmp_path / "run" / "bundles" / "seed-0", device="cpu").predict(wave_N, 16_000)

    forget_addresses()
    monkeypatch.chdir(tmp_path)  # the store is work/mlflow.db here
    assert ast_core.load(MODEL, device="cpu").predict(wave_N, 16_000) == own
    assert not mlflow.is_tracking_uri_set()
    assert not {*ADDRESSES} & set(os.environ)

    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert ast_core.load("models:/ast-test/1", device="cpu").predict(wave_N, 16_000) == own
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(store)
    assert Bundle.load(fetch_model(MODEL)).digest == Bundle.load(tmp_path / "run" / "bundles" / "seed-0").digest
    assert mlflow.get_tracking_uri() == store
    with pytest.raises(UserError, match="ast-other"):
        ast_core.load("models:/ast-other@champion")


def test_a_store_that_does_not_exist_is_refused_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the MLflow store .*work/mlflow.db does not exist. Set MLFLOW_TRACKING_URI"):
        ast_core.load(MODEL)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match="runs and models are kept only in a database or on an MLflow server"):
        ast_core.load(MODEL)
