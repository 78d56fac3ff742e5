"""Stages that train and score in this process, for tests of what comes before and after; Ray's workers need 20 s."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
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
from pipeline import train
from pipeline.ray_runtime import connection
from pipeline.scoring import bundle_scores, distillation


@contextlib.contextmanager
def stages_without_ray() -> Iterator[None]:
    """Let `train` and the stages that score bundles run without Ray while this context is open.

    `prepare` uses the fixture `ray_session` as before.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "supervise", supervise_without_ray)
        _score_without_ray(patch)
        yield


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
