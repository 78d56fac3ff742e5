"""Stages that prepare, train and score in this process, for tests of what comes before and after Ray's workers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trainings import supervise_without_ray

from ast_core.config import Job
from ast_core.evaluation.predictor import Predictor
from ast_core.shards.reader import ShardReader
from ast_core.training.trainer import fit
from ast_core.weights.bundle import Bundle
from pipeline import prepare, train
from pipeline.cli.stages import PrepareSettings
from pipeline.preparation.part_writer import write_part_row
from pipeline.ray_runtime import connection, heartbeat
from pipeline.ray_runtime.shard_part import PartTask, ShardPart
from pipeline.run_folder import sync
from pipeline.scoring import bundle_scores, distillation


@contextlib.contextmanager
def stages_without_ray() -> Iterator[None]:
    """Let `prepare`, `train` and the stages that score bundles run without Ray while this context is open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_work", write_parts_here)
        patch.setattr(prepare, "_check_source", lambda _: None)
        patch.setattr(prepare, "choose_device", lambda *_: "cpu")
        patch.setattr(heartbeat, "send_heartbeats", lambda *_: contextlib.nullcontext())
        patch.setattr(train, "supervise", supervise_without_ray)
        _score_without_ray(patch)
        yield


def write_parts_here(pending: Sequence[ShardPart], settings: PrepareSettings) -> None:
    """Write parts as Ray's workers do, one after the other in this process, in the place of `prepare._work`."""
    stores = sync.object_stores(settings)
    tasks = [PartTask(part, stores, "") for part in pending]
    done = SimpleNamespace(iter_rows=lambda: (write_part_row(task.to_row()) for task in tasks))
    prepare._follow(done, sum(len(part.clips) for part in pending), str(settings.run_dir))


def _score_without_ray(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(connection, "connect", lambda *_: contextlib.nullcontext())
    for module in (bundle_scores, distillation):
        patch.setattr(module, "member_scores", score_in_this_process)


def score_in_this_process(
    settings: object, bundles: Sequence[bundle_scores.DescribedBundle], reader: ShardReader
) -> dict[str, np.ndarray]:
    """Score each distinct member of the bundles, in the place of `bundle_scores.member_scores`."""
    torch.set_num_threads(1)
    scores = {}
    for place in bundle_scores._find_distinct_members(bundles):
        bundle = Bundle.load(place.bundle)
        single = dataclasses.replace(bundle, members=(bundle.members[place.number],))
        predictor = Predictor(single, "cpu")
        scores[place.sha256] = predictor.from_fbank(reader.read(np.arange(len(reader))), reader.num_frames_N)
    return scores


def run_trial_without_ray(config: dict[str, Any]) -> None:
    """Run a trial of a study as `tune.trial.run_trial` does, but train and score in the trial's process."""
    from tune.trial import run_trial  # noqa: PLC0415  # most tests run no study

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "supervise", fit_here)
        _score_without_ray(patch)
        run_trial(config)


def fit_here(job: Job, *_: object) -> None:
    """Train as a single rank, in the place of `training_supervisor.supervise`."""
    job.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    fit(job, 0, 1, torch.device("cpu"))
