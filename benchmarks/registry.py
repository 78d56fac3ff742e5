"""Time to find a version, to read an alias and to register one more, in a model of 10, 100 and 500 versions.

python benchmarks/registry.py

The versions in between share one upload; the versions that are timed are registered completely.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import torch
from mlflow import MlflowClient
from peers.comparison import arguments, one_core, print_machine

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.storage.json_files import write_json
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.bundle_description import BundleFacts
from pipeline.cli.stages import RegisterSettings
from pipeline.register import register
from pipeline.tracking import registry

NAME = "many"
LABELS = ("low", "high")
ROUNDS = 5


def write_run(folder: Path, seed: int) -> str:
    """Write a run of one tiny member, better than those of smaller seeds; return its bundle's digest."""
    torch.manual_seed(seed)
    front_end = FrontEndConfig(target_frames=32, num_mel_bins=16)
    model = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
    weights = AST(model, front_end.num_mel_bins, front_end.target_frames, len(LABELS)).state_dict()
    identity = {"model": to_dict(model), "front_end": to_dict(front_end), "labels": list(LABELS), "loss": "bce"}
    shutil.rmtree(folder, ignore_errors=True)
    facts = BundleFacts(recipe="made", role="member", seeds=(0,))
    member = ("seed-0", weights, {**identity, "mean": -5.0, "std": 4.0})
    digest = write_bundle(folder / "bundles" / "seed-0", [member], False, facts)
    clips = {"split": "test", "clips_listed": 1, "clips_evaluated": 1, "evaluated_on": "made"}
    write_json(
        folder / "evaluation" / "seed-0.json",
        {"bundle_digest": digest, "metrics": {"mAP": 0.1 + seed / 1000}, "per_class": {}, **clips},
    )
    (folder / "evaluation" / "seed-0-per-class.csv").write_text("label,ap\n", encoding="utf-8")
    return digest


def add_fillers(count: int) -> None:
    """Add versions up to a number, with different tags, that share the upload of the first version."""
    source = MlflowClient().get_model_version(NAME, "1")
    first = len(MlflowClient().search_model_versions(f"name = '{NAME}'", max_results=10_000)) + 1
    for number in range(first, count + 1):
        tags = {**source.tags, "bundle_digest": f"filler-{number}", "score": "0.05"}
        MlflowClient().create_model_version(NAME, source.source, source.run_id, tags=tags)


def measure_s(action: Callable[[], object]) -> float:
    """Return the shortest time of a few calls, in seconds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Register a version, fill the model up, register and find another version; repeat for each size."""
    parser = arguments(__doc__)
    parser.add_argument("--versions", type=int, default=500)
    args = parser.parse_args()
    one_core()
    marks = [3, 6] if args.quick else sorted({min(10, args.versions), min(100, args.versions), args.versions})
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        settings = RegisterSettings(
            run_dir=Path(name, "run"), tracking=f"sqlite:///{name}/mlflow.db", experiment="made", model_name=NAME
        )
        write_run(settings.run_dir, 0)
        with contextlib.redirect_stdout(io.StringIO()):
            register(settings)
        for seed, mark in enumerate(marks, 1):
            add_fillers(mark - 1)
            digest = write_run(settings.run_dir, seed)
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                versions = register(settings)
            once_s = time.perf_counter() - started
            champion = registry.version_of_alias(NAME, registry.CHAMPION)
            assert versions[NAME] == mark  # noqa: S101
            assert champion is not None  # noqa: S101
            assert champion.number == mark  # noqa: S101 - the better one was promoted
            stored = Bundle.load(registry.fetch_bundle(f"models:/{NAME}@champion"))
            assert stored.digest == digest  # noqa: S101
            find_s = measure_s(lambda digest=digest: registry.find_version(NAME, digest, ""))  # type: ignore[misc]
            alias_s = measure_s(lambda: registry.version_of_alias(NAME, registry.CHAMPION))
            print(
                f"version {mark}: registered, checked and promoted in {once_s:.2f} s with its member's model; "
                f"found by its bundle in {1000 * find_s:.1f} ms, by its alias in {1000 * alias_s:.1f} ms"
            )
        mlflow.set_tracking_uri("")
        os.chdir(before)
    print_machine()


if __name__ == "__main__":
    main()
