"""Fixtures of all tests: audio made by code, one Ray session, a small bundle, a finished study."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch
from clusters import Cluster, running
from filelock import FileLock
from prepared import FRONT_END, LABELS, write_shards

from ast_core.config import ModelConfig
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights.bundle import write_bundle

if TYPE_CHECKING:
    from local_hub import LocalHub
    from main_jobs import MainJob
    from servers import LocalTracker

pytest_plugins = ["tiers", "figures"]
RATE_HZ = 16_000
# On two shared cores, two threads wait for each other: a training of a second would take a minute.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that the tests start
SaveTone = Callable[..., Path]
NewStore = Callable[[Path], str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kubernetes",
        action="store_true",
        help="also collect tests/kubernetes/one_node, which needs a Kubernetes cluster",
    )
    parser.addoption(
        "--fault-seed", type=int, default=0, help="seed of all random instants and bytes in tests/reliability"
    )


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a local Ray with two CPUs, which the stages under test use and do not stop."""
    from forked_trainings import preload  # noqa: PLC0415  # most tests fork nothing

    from pipeline.ray_runtime import connection  # noqa: PLC0415  # imports Ray

    preload("ray.data", "pipeline.prepare", "tune.search")  # nearly all that a forked driver imports
    with connection.connect("", 2):
        yield


@pytest.fixture(scope="module")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Start a Ray cluster with dashboard and tokens, for programs that join it; in the short form it is a single node.

    It ends with its file, because an idle cluster takes CPU time from the tests after it.
    """
    with running(single=not request.config.getoption("--long")) as started:
        yield started


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Let this process use a stand-in of Hugging Face's hub, with an empty cache."""
    from local_hub import LocalHub, use_hub  # noqa: PLC0415  # most tests download nothing

    with LocalHub().running() as running:
        use_hub(monkeypatch, running, tmp_path / "home")
        yield running


@pytest.fixture
def without_ray() -> Iterator[None]:
    """Let the stages of a test train and score in its process."""
    from without_ray import stages_without_ray  # noqa: PLC0415  # most tests run no stage

    with stages_without_ray():
        yield


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Path:
    """Return the folder of a study that ran without a fault, its trials one after the other in this process."""
    from studies import new_study, search_here  # noqa: PLC0415  # most tests need no Ray Tune

    folder = new_study(tmp_path_factory.mktemp("study"))
    new_store(folder)
    search_here(folder, "--ensemble.epochs")
    return folder


@pytest.fixture(scope="session")
def main_job(tmp_path_factory: pytest.TempPathFactory, save_tone: SaveTone, new_store: NewStore) -> MainJob:
    """Return a main job that ran from recordings to predictions, with a Ray of its own."""
    from main_jobs import run_main_job  # noqa: PLC0415  # most tests run no stage

    return run_main_job(tmp_path_factory.mktemp("main-job"), save_tone, new_store)


@pytest.fixture(scope="session")
def save_tone() -> SaveTone:
    """Return a function that writes one tone over faint noise; the same arguments make the same bytes."""

    def save(path: Path, seconds: float = 0.4, pitch_hz: float = 440.0, seed: int = 0) -> Path:
        times_N = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
        noise_N = np.random.default_rng(seed).normal(0, 0.01, len(times_N))
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch_hz * times_N) + noise_N, RATE_HZ, subtype="PCM_16")
        return path

    return save


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> NewStore:
    """Return a function that writes an empty MLflow store `mlflow.db` to a folder and returns its URI.

    MLflow takes two to four seconds to make the tables, so they are made once for all processes, and copied.
    """
    from pipeline.tracking.mlflow_store import open_store  # noqa: PLC0415  # most tests need no MLflow

    own = tmp_path_factory.getbasetemp()
    made = (own if worker_id == "master" else own.parent) / "store" / "mlflow.db"  # xdist's processes share the parent
    made.parent.mkdir(exist_ok=True)
    with FileLock(made.with_suffix(".making")):
        if not made.exists():
            open_store(f"sqlite:///{made}.new")
            made.with_name("mlflow.db.new").rename(made)

    def copy(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{shutil.copy(made, folder / 'mlflow.db')}"

    return copy


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Iterator[LocalTracker]:
    """Start MLflow's server with the flags of the manifest for Kubernetes, but another database and port."""
    from manifests import tracker_flags  # noqa: PLC0415  # most tests start no server
    from servers import LocalTracker  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("tracker")
    new_store(folder)
    with LocalTracker(folder, tracker_flags("multi-node")) as started:
        yield started


@pytest.fixture
def trained_bundle(tmp_path: Path) -> Path:
    """Write a bundle of one small model with the labels of `write_shards`, in a run folder with such shards."""
    torch.manual_seed(0)
    write_shards(tmp_path / "shards", {"test": 9})
    model = ModelConfig(
        backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch"
    )
    weights = AST(model, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(LABELS)).state_dict()
    identity = {"model": to_dict(model), "front_end": to_dict(FRONT_END), "labels": list(LABELS), "loss": "bce"}
    folder = tmp_path / "bundles" / "seed-0"
    write_bundle(folder, [("seed-0", weights, {**identity, "mean": -6.0, "std": 4.0})], True)
    return folder
