"""Members' probabilities of a test split, spread over Ray's workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.util
from rich.console import Console
from rich.progress import Progress

from ast_core.config import require
from ast_core.errors import UserError
from ast_core.shards import ShardReader
from pipeline import cluster
from pipeline.scorer import Place, Scorer
from pipeline.settings import EvaluateSettings

CHUNK = 32
"""Clips a worker scores between two reports."""


def score_members(
    settings: EvaluateSettings, descriptions: dict[str, dict[str, Any]], reader: ShardReader
) -> dict[str, np.ndarray]:
    """Score each different member of the bundles on the test split, every clip once, in a Ray that is connected.

    Args:
        settings: of the stage.
        descriptions: of the bundles, by name.
        reader: of the split.

    Returns:
        Probabilities, float32 [N, C], by the SHA-256 of a member's weights.

    Raises:
        UserError: a bundle gives scores that are not finite, or is damaged.
    """
    places = _places(settings.run_dir / "bundles", descriptions)
    chunks = [np.arange(first, min(first + CHUNK, len(reader))) for first in range(0, len(reader), CHUNK)]
    scores = {place: np.full(reader.labels_NC.shape, np.nan, np.float32) for place in places}
    scorers = _scorers(settings, len(chunks))
    tasks = [(place, indices) for place in places for indices in chunks]
    try:
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"evaluate {len(places)} members", total=len(places) * len(reader))
            answers = ray.util.ActorPool(scorers).map_unordered(lambda actor, task: actor.score.remote(*task), tasks)
            for place, indices, scores_BC in answers:
                scores[place][indices] = scores_BC
                progress.advance(bar, len(indices))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    finally:
        for scorer in scorers:
            ray.kill(scorer)
    for place in places:
        _check_scores(place.bundle, scores[place], reader)
    return {place.sha256: scores_NC for place, scores_NC in scores.items()}


def _places(bundles: Path, descriptions: dict[str, dict[str, Any]]) -> list[Place]:
    """Each different member once: an ensemble's are its members' own bundles' too."""
    places: dict[str, Place] = {}
    for name, description in descriptions.items():
        for number, entry in enumerate(description["members"]):
            places.setdefault(entry["sha256"], Place(bundles / name, number, entry["sha256"]))
    return list(places.values())


def _scorers(settings: EvaluateSettings, most: int) -> list[Any]:
    """As many workers as were asked for and as the cluster can hold at once, but no more than `most`."""
    resources, gpu = ray.cluster_resources(), cluster.uses_gpu()
    room = int(resources.get("GPU" if gpu else "CPU", 1))
    workers = max(1, min(cluster.worker_count(settings.workers), room, most))
    actor = ray.remote(Scorer).options(
        num_cpus=1,
        num_gpus=1 if gpu else 0,
        max_restarts=2,
        max_task_retries=2,
        scheduling_strategy="DEFAULT",  # not in the placement group of a trial, which has room for itself only
    )
    return [actor.remote(settings.shards, settings.data.test_split) for _ in range(workers)]


def _check_scores(bundle: Path, scores_NC: np.ndarray, reader: ShardReader) -> None:
    finite_N = np.isfinite(scores_NC).all(axis=1)
    names = ", ".join(reader.clip_ids[index] for index in np.flatnonzero(~finite_N)[:5])
    require(bool(finite_N.all()), f"{bundle} gives scores that are not finite for {names}: train it again.")
