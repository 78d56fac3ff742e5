"""Registrations killed at chosen points and at random instants: an alias never shows what is not whole."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_run
from mlflow import MlflowClient
from registrations import DONE, KILLED, POINTS, registrar

from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from pipeline.tracking import mlflow_store, registry

NAMES = ("killed", "killed-seed-0")
RANDOM = "at a random instant"
RATE_HZ = 16_000


def check_aliases(ever_made: set[str]) -> int:
    """Every alias there is leads to a version whose bytes are those of a bundle that was made; gives how many."""
    found = 0
    for model in MlflowClient().search_registered_models():
        for alias, number in model.aliases.items():
            version = MlflowClient().get_model_version(model.name, number)
            bundle = Bundle.load(registry.fetch_bundle(f"models:/{model.name}@{alias}"))
            assert bundle.digest == version.tags["bundle_digest"]
            assert bundle.digest in ever_made
            found += 1
    return found


def check_versions() -> int:
    """No bundle is two versions of a model; gives how many versions there are."""
    versions = MlflowClient().search_model_versions()
    held = Counter((version.name, version.tags["bundle_digest"]) for version in versions)
    assert set(held.values()) <= {1}, held
    return len(versions)


def differences(run_dir: Path) -> float:
    """The largest between a probability that the champion predicts and one of the models that were made."""
    made = Bundle.load(run_dir / "bundles" / "seed-0")
    served = Bundle.load(registry.fetch_bundle("models:/killed@champion"))
    waveform_N = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    both = [Predictor(bundle, "cpu").probabilities(waveform_N) for bundle in (made, served)]
    return float(np.abs(both[0] - both[1]).max())


@pytest.mark.timeout(900)
def test_killed_registrations(
    tmp_path: Path, many: Callable[[int, int], int], fault_seed: int, measured: Callable[..., None]
) -> None:
    draw = random.Random(fault_seed)
    run_dir, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    order: dict[str, Any] = {"run_dir": str(run_dir), "tracking": uri}
    mlflow_store.open_store(uri)
    ever_made: set[str] = set()
    chosen = list(POINTS)
    faults = [chosen[0], *draw.sample(chosen[1:], many(3, len(chosen) - 1)), *[RANDOM] * many(2, 30)]
    kills: Counter[str] = Counter()
    aliases, worst, slowest_s, whole_s = 0, 0.0, 0.0, 3.0
    with registrar(tmp_path / "registrar.log") as register:
        for number, fault in enumerate(faults):
            shutil.rmtree(run_dir, ignore_errors=True)
            write_run(run_dir, (0,), score=0.1 + 0.01 * number, weights=number)
            ever_made |= {Bundle.load(path).digest for path in (run_dir / "bundles").iterdir()}
            how = {"after_s": draw.uniform(0, whole_s)} if fault == RANDOM else {"at": POINTS[fault]}
            killed = register(order | how)
            assert killed["status"] == KILLED or (fault == RANDOM and killed["status"] == DONE), (fault, killed)
            kills[fault] += killed["status"] == KILLED
            aliases += check_aliases(ever_made)
            check_versions()
            again = register(order)
            assert again["status"] == DONE, again
            assert set(again["said"]) == set(NAMES)
            assert set(again["said"].values()) == {number + 1}  # as many versions as bundles, whatever was killed
            assert check_aliases(ever_made) == 2 * len(NAMES)
            worst = max(worst, differences(run_dir))
            slowest_s = max(slowest_s, again["seconds"])
            whole_s = again["seconds"] if number == 0 else whole_s
    assert worst <= 1e-6
    assert sum(kills.values()) >= len(faults) - many(1, 10)
    measured(
        "R22", kills=sum(kills.values()), at_chosen_points=sum(kills.values()) - kills[RANDOM],
        aliases_checked=aliases, versions=check_versions(), slowest_recovery_s=slowest_s,
    )  # fmt: skip
    measured("R23", largest_difference=worst)
