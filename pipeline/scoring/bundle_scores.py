"""The probabilities of bundles for the clips of a split, read from disk or computed on Ray's workers.

Shape suffixes: N clips of the split, B clips of a chunk, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.progress import Progress

from ast_core.errors import UserError, require
from ast_core.evaluation.stored_scores import identity_of, read_scores, write_scores
from ast_core.shards.reader import ShardReader
from ast_core.weights.bundle import DESCRIPTION
from ast_core.weights.bundle_description import BundleFacts, Description, Entry, read_description
from ast_core.weights.ensemble_mean import mean_probabilities
from pipeline.cli.stages import GpuCommon
from pipeline.ray_runtime import cluster_size, connection
from pipeline.ray_runtime.liveness import LivenessWatch
from pipeline.ray_runtime.scorer import MemberWeights, Scorer
from pipeline.run_folder import sync

CHUNK = 32
"""Number of clips that a worker scores in one task, after which the progress bar advances."""
RESTARTS = 2
"""Number of times that a worker which died or was stopped is replaced."""
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class DescribedBundle:
    """The description of a bundle on disk, without its weights."""

    folder: Path
    description: Description

    @property
    def digest(self) -> str:
        """The digest of the bundle."""
        return self.description.digest

    @property
    def facts(self) -> BundleFacts:
        """The origin of the bundle: its recipe, seeds, data and runs."""
        return self.description.facts

    @property
    def members(self) -> tuple[Entry, ...]:
        """The members of the bundle."""
        return self.description.members

    @property
    def places(self) -> list[MemberWeights]:
        """The places of the members' weights."""
        return [MemberWeights(self.folder, n, entry.sha256) for n, entry in enumerate(self.members)]


def describe_bundle(folder: Path, reader: ShardReader) -> DescribedBundle:
    """Read the description of a bundle, and check that the bundle fits the shards.

    Raises:
        UserError: the folder holds no bundle, or its labels or its front end differ from those of the shards.
    """
    described = DescribedBundle(folder, read_description(folder))
    labels, wanted = described.description.labels, reader.index.labels
    require(
        labels == wanted,
        f"{folder} was trained on {len(labels)} labels that are not the {len(wanted)} of the shards in use"
        f"{_describe_first_difference(labels, wanted)}. Evaluate it on the shards it was trained on.",
    )
    fits = all(entry.front_end == reader.index.front_end for entry in described.members)
    require(
        fits,
        f"{folder} was trained with another front end than that of the shards in {reader.folder}. Run prepare "
        "with the front end of the bundle.",
    )
    return described


def describe_bundles(bundles: Path, reader: ShardReader) -> dict[str, DescribedBundle]:
    """Describe the bundles of a folder by name, the largest ensemble last.

    Raises:
        UserError: the folder holds no bundle, or a bundle does not fit the shards.
    """
    found = [describe_bundle(path.parent, reader) for path in sorted(bundles.glob(f"*/{DESCRIPTION}"))]
    require(bool(found), f"There is no bundle in {bundles}; run combine first.")
    return {described.folder.name: described for described in sorted(found, key=_count_ensemble_members)}


def _count_ensemble_members(described: DescribedBundle) -> int:
    return len(described.places) if described.facts.role == "ensemble" else 0


def _describe_first_difference(labels: Sequence[str], wanted: Sequence[str]) -> str:
    pairs = enumerate(zip(labels, wanted, strict=False))
    return next((f" (label {n}: {own!r}, not {other!r})" for n, (own, other) in pairs if own != other), "")


def bundle_scores(
    settings: GpuCommon, bundles: Mapping[str, DescribedBundle], reader: ShardReader, output: Path
) -> dict[str, np.ndarray]:
    """Return each bundle's probabilities of the reader's clips, float32 [N, C]; store `output/NAME-scores.parquet`.

    A member that is in several bundles is scored once. A bundle that was already scored on these clips is read from its
    file.

    Raises:
        UserError: a bundle is damaged, or its scores are not finite.
    """
    paths = {name: output / f"{name}-scores.parquet" for name in bundles}
    identities = {name: identity_of(described.digest, reader) for name, described in bundles.items()}
    known = {name: read_scores(path, identities[name]) for name, path in paths.items()}
    pending = {name: described for name, described in bundles.items() if known[name] is None}
    if pending:
        by_member = member_scores(settings, list(pending.values()), reader)
        for name, described in pending.items():
            scores_NC = mean_probabilities([by_member[place.sha256] for place in described.places])
            write_scores(paths[name], identities[name], scores_NC, reader)
            known[name] = scores_NC
    return {name: scores_NC for name, scores_NC in known.items() if scores_NC is not None}


def member_scores(
    settings: GpuCommon, bundles: Sequence[DescribedBundle], reader: ShardReader
) -> dict[str, np.ndarray]:
    """Score each distinct member of the bundles once on every clip.

    Returns:
        The probabilities, float32 [N, C], by the SHA-256 of the member's weights.

    Raises:
        UserError: a bundle is damaged, or its scores are not finite.
    """
    with connection.connect(settings.address, settings.workers, settings.gpus):
        scores = _score_members(settings, _find_distinct_members(bundles), reader)
    for place, scores_NC in scores.items():
        _check_scores(place.bundle, scores_NC, reader)
    return {place.sha256: scores_NC for place, scores_NC in scores.items()}


def _find_distinct_members(bundles: Sequence[DescribedBundle]) -> list[MemberWeights]:
    """Return the places of the members without duplicates: members of an ensemble have bundles of their own, too."""
    places: dict[str, MemberWeights] = {}
    for described in bundles:
        for place in described.places:
            places.setdefault(place.sha256, place)
    return list(places.values())


def _score_members(
    settings: GpuCommon, places: Sequence[MemberWeights], reader: ShardReader
) -> dict[MemberWeights, np.ndarray]:
    chunks = [np.arange(first, min(first + CHUNK, len(reader))) for first in range(0, len(reader), CHUNK)]
    scores = {place: np.full(reader.labels.shape, np.nan, np.float32) for place in places}
    tasks = [(place, indices) for place in places for indices in chunks]
    workers = cluster_size.workers_that_fit(settings.workers, settings.gpus, len(chunks))
    with LivenessWatch("evaluate", workers) as watch, Progress(console=Console(stderr=True)) as progress:
        wait = cluster_size.GpuWait(1) if settings.gpus == "yes" else None
        scorers = _start_scorers(settings, reader, workers, watch.name)
        bar = progress.add_task(f"score {len(places)} members", total=len(places) * len(reader))
        try:
            for place, indices, scores_BC in _run_tasks(scorers, tasks, wait):
                scores[place][indices] = scores_BC
                progress.advance(bar, len(indices))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"A scoring worker died more than {RESTARTS} times: {error}. The scores on disk stay: fix the cause "
                "and run the same command again."
            ) from error
        finally:
            for scorer in scorers:
                ray.kill(scorer)
    return scores


def _run_tasks(
    scorers: Sequence[Any], tasks: Sequence[tuple[MemberWeights, np.ndarray]], wait: cluster_size.GpuWait | None
) -> Iterator[tuple[MemberWeights, np.ndarray, np.ndarray]]:
    """Yield the result of each task in the order of their ends.

    Only workers that have started get tasks: Ray may not have room for the others yet, or ever.
    """
    todo, left, started = iter(tasks), len(tasks), False
    running = {scorer.is_ready.remote(): scorer for scorer in scorers}
    while left:
        done, _ = ray.wait(list(running), timeout=LOOK_EVERY_S)
        if not done and not started and wait is not None:
            wait.look()
        for answer in done:
            scorer, result, started = running.pop(answer), ray.get(answer), True
            if result is not None:
                left -= 1
                yield result
            if (task := next(todo, None)) is not None:
                running[scorer.score.remote(*task)] = scorer


def _start_scorers(settings: GpuCommon, reader: ShardReader, workers: int, watch: str) -> list[Any]:
    """Start the workers; return their actors."""
    actor = ray.remote(Scorer).options(
        num_cpus=1,
        num_gpus=1 if cluster_size.uses_gpu(settings.gpus) else 0,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        scheduling_strategy="DEFAULT",  # not the placement group of a trial, which has no room for scorers
    )
    stores = sync.object_stores(settings)
    return [actor.remote(watch, reader.folder, reader.splits, stores, settings.gpus) for _ in range(workers)]


def _check_scores(bundle: Path, scores_NC: np.ndarray, reader: ShardReader) -> None:
    finite_N = np.isfinite(scores_NC).all(axis=1)
    names = ", ".join(reader.clip_ids[index] for index in np.flatnonzero(~finite_N)[:5])
    require(bool(finite_N.all()), f"The scores of {bundle} are not finite for {names}. Train it again.")
