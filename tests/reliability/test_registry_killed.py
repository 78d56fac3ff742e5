"""Registrations killed at chosen points and at random times: an alias always points at a complete version."""

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
from conftest import NewStore
from mlflow import MlflowClient
from registrations import DONE, KILLED, POINTS, start_registrations

from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from pipeline.tracking import mlflow_store, registry

pytestmark = pytest.mark.slow

NAMES = ("killed", "killed-seed-0")
RANDOM = "at a random time"
RATE_HZ = 16_000


def check_aliases(written_digests: set[str]) -> int:
    """Check that every alias points at a version with the bytes of a bundle that was written; return their number."""
    found = 0
    for model in MlflowClient().search_registered_models():
        for alias, number in model.aliases.items():
            version = MlflowClient().get_model_version(model.name, number)
            bundle = Bundle.load(registry.fetch_bundle(f"models:/{model.name}@{alias}"))
            assert bundle.digest == version.tags["bundle_digest"]
            assert bundle.digest in written_digests
            found += 1
    return found


def check_versions() -> int:
    """Check that no bundle is in two versions of a model; return the number of versions."""
    versions = MlflowClient().search_model_versions()
    held = Counter((version.name, version.tags["bundle_digest"]) for version in versions)
    assert set(held.values()) <= {1}, held
    return len(versions)


def measure_difference(run_dir: Path) -> float:
    """Return the largest difference between the probabilities of the champion and of the bundle on disk."""
    made = Bundle.load(run_dir / "bundles" / "seed-0")
    served = Bundle.load(registry.fetch_bundle("models:/killed@champion"))
    waveform_N = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    both = [Predictor(bundle, "cpu").probabilities(waveform_N) for bundle in (made, served)]
    return float(np.abs(both[0] - both[1]).max())


@pytest.mark.timeout(900)
def test_killed_registrations_leave_complete_versions_and_are_repeatable(
    tmp_path: Path,
    new_store: NewStore,
    many: Callable[[int, int], int],
    fault_seed: int,
    measured: Callable[..., None],
) -> None:
    draw = random.Random(fault_seed)
    run_dir, uri = tmp_path / "run", new_store(tmp_path)
    order: dict[str, Any] = {"run_dir": str(run_dir), "tracking": uri}
    mlflow_store.open_store(uri)
    written_digests: set[str] = set()
    chosen = list(POINTS)
    faults = [*draw.sample(chosen[-many(3, len(chosen)) :], many(1, len(chosen))), *[RANDOM] * many(0, 30)]
    kills: Counter[str] = Counter()
    aliases, worst, slowest_s, duration_s = 0, 0.0, 0.0, 3.0
    with start_registrations(tmp_path / "registrations.log") as register:
        for number, fault in enumerate(faults):
            shutil.rmtree(run_dir, ignore_errors=True)
            write_run(run_dir, (0,), score=0.1 + 0.01 * number, weights=number)
            written_digests |= {Bundle.load(path).digest for path in (run_dir / "bundles").iterdir()}
            how = {"after_s": draw.uniform(0, duration_s)} if fault == RANDOM else {"at": POINTS[fault]}
            killed = register(order | how)
            assert killed["status"] == KILLED or (fault == RANDOM and killed["status"] == DONE), (fault, killed)
            kills[fault] += killed["status"] == KILLED
            aliases += check_aliases(written_digests)
            check_versions()
            again = register(order)
            assert again["status"] == DONE, again
            assert set(again["answer"]) == set(NAMES)
            assert set(again["answer"].values()) == {number + 1}  # one version per bundle, whatever was killed
            assert check_aliases(written_digests) == 2 * len(NAMES)
            worst = max(worst, measure_difference(run_dir))
            slowest_s = max(slowest_s, again["seconds"])
            duration_s = again["seconds"] if number == 0 else duration_s
    assert worst <= 1e-6
    assert sum(kills.values()) >= len(faults) - many(0, 10)
    measured(
        "R22", kills=sum(kills.values()), at_chosen_points=sum(kills.values()) - kills[RANDOM],
        aliases_checked=aliases, versions=check_versions(), slowest_recovery_s=slowest_s,
    )  # fmt: skip
    measured("R23", largest_difference=worst)
