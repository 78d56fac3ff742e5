"""Evaluate every bundle of a run on the test split, each clip exactly once, spread over Ray's workers.

python pipeline/evaluate.py --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray
import ray.util
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ast_core import metrics
from ast_core.bundle import DESCRIPTION
from ast_core.config import require
from ast_core.ensemble import mean_probabilities
from ast_core.errors import UserError
from ast_core.files import committed, digest, read_json, write_json
from ast_core.shards import ShardReader
from pipeline import cluster, tracking
from pipeline.plots import plot_curves, plot_per_class
from pipeline.progress import read_history
from pipeline.scorer import Place, Scorer
from pipeline.settings import EvaluateSettings, parse, run_stage

CHUNK = 32
"""Clips a worker scores between two reports."""


def evaluate(settings: EvaluateSettings) -> dict[str, dict[str, float]]:
    """Score the bundles, write scores, metrics and pictures to `evaluation/`, log them.

    A member is scored once, in however many bundles it is; a bundle that was scored on this data already, not again.

    Returns:
        The metrics of `ast_core.metrics.evaluate_scores` by bundle.

    Raises:
        UserError: no bundle, no such split or no clip in it, or a bundle of other labels or another front end.
    """
    split = settings.data.test_split
    reader = ShardReader(settings.shards, [split])
    require(len(reader) > 0, f"The split {split} in {settings.shards} holds no clip to test on.")
    descriptions = _descriptions(settings.run_dir / "bundles", reader)
    output = settings.run_dir / "evaluation"
    facts = {"data_hash": reader.index.data_hash, "split": split}
    identities = {name: {"bundle_digest": value["digest"], **facts} for name, value in descriptions.items()}
    results = {name: _known(output / f"{name}.json", identity) for name, identity in identities.items()}
    pending = {name: value for name, value in descriptions.items() if not results[name]}
    if pending:
        with cluster.connected(settings.address, settings.workers):
            scores = _scored(_places(settings.run_dir / "bundles", pending), settings, reader)
        for name, description in pending.items():
            scores_NC = mean_probabilities([scores[entry["sha256"]] for entry in description["members"]])
            results[name] = _write(output, name, identities[name], scores_NC, reader)
    summary = {name: _numbers(result["metrics"]) for name, result in results.items()}
    write_json(output / "summary.json", {name: result["metrics"] for name, result in results.items()})
    _draw(settings, output, results)
    _log(settings, output, summary, {"data_hash": reader.index.data_hash, "bundles": digest(identities)})
    Console().print(_table(summary, results))
    return summary


def _descriptions(bundles: Path, reader: ShardReader) -> dict[str, dict[str, Any]]:
    """Each bundle's description, members first, the ensemble last; UserError where it does not fit the shards."""
    found = sorted(path.parent for path in bundles.glob(f"*/{DESCRIPTION}"))
    require(bool(found), f"There is no bundle in {bundles}: run combine first.")
    descriptions = {}
    for folder in sorted(found, key=lambda path: path.name == "ensemble"):
        description = read_json(folder / DESCRIPTION, "Bundle")
        labels, wanted = description["labels"], list(reader.index.labels)
        require(
            labels == wanted,
            f"{folder} was trained on {len(labels)} labels that are not the {len(wanted)} of the shards in use"
            f"{_first_difference(labels, wanted)}. Evaluate it on the shards it was trained on.",
        )
        fits = all(entry["front_end"] == reader.index.front_end for entry in description["members"])
        require(fits, f"{folder} was trained with another front end than the shards in use. Prepare with its own.")
        descriptions[folder.name] = description
    return descriptions


def _first_difference(labels: Sequence[str], wanted: Sequence[str]) -> str:
    pairs = enumerate(zip(labels, wanted, strict=False))
    return next((f" (label {n}: {own!r}, not {other!r})" for n, (own, other) in pairs if own != other), "")


def _places(bundles: Path, descriptions: dict[str, dict[str, Any]]) -> list[Place]:
    """Each different member once: an ensemble's are its members' own bundles' too."""
    places: dict[str, Place] = {}
    for name, description in descriptions.items():
        for number, entry in enumerate(description["members"]):
            places.setdefault(entry["sha256"], Place(bundles / name, number, entry["sha256"]))
    return list(places.values())


def _known(path: Path, identity: dict[str, str]) -> dict[str, Any]:
    """A result of the same bundle on the same data, with its scores; empty if there is none."""
    if not path.is_file() or not path.with_name(f"{path.stem}-scores.parquet").is_file():
        return {}
    result: dict[str, Any] = read_json(path, "Evaluation")
    return result if all(result.get(key) == value for key, value in identity.items()) else {}


def _scored(places: Sequence[Place], settings: EvaluateSettings, reader: ShardReader) -> dict[str, np.ndarray]:
    """Each member's probabilities, float32 [N, C], by its weights' hash; every clip once, or an error."""
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


def _scorers(settings: EvaluateSettings, most: int) -> list[Any]:
    """As many workers as were asked for and as the cluster can hold at once, but no more than `most`."""
    resources, gpu = ray.cluster_resources(), cluster.uses_gpu()
    room = int(resources.get("GPU" if gpu else "CPU", 1))
    workers = max(1, min(cluster.worker_count(settings.workers), room, most))
    actor = ray.remote(Scorer).options(num_cpus=1, num_gpus=1 if gpu else 0, max_restarts=2, max_task_retries=2)
    return [actor.remote(settings.shards, settings.data.test_split) for _ in range(workers)]


def _check_scores(bundle: Path, scores_NC: np.ndarray, reader: ShardReader) -> None:
    finite_N = np.isfinite(scores_NC).all(axis=1)
    names = ", ".join(reader.clip_ids[index] for index in np.flatnonzero(~finite_N)[:5])
    require(bool(finite_N.all()), f"{bundle} gives scores that are not finite for {names}: train it again.")


def _write(
    output: Path, name: str, identity: dict[str, str], scores_NC: np.ndarray, reader: ShardReader
) -> dict[str, Any]:
    """Commit a bundle's scores, then its metrics, which vouch for them."""
    labels_NC = reader.labels_NC
    precision_C, auc_C = metrics.average_precision_C(scores_NC, labels_NC), metrics.roc_auc_C(scores_NC, labels_NC)
    table = pa.table(
        {
            "clip_id": pa.array(reader.clip_ids, pa.string()),
            "scores": pa.array(list(scores_NC), pa.list_(pa.float32())),
            "labels": pa.array([np.flatnonzero(row > 0) for row in labels_NC], pa.list_(pa.int32())),
        }
    )
    with committed(output / f"{name}-scores.parquet") as beside:
        pyarrow.parquet.write_table(table, beside)
    result = {
        **identity,
        "metrics": _plain(metrics.evaluate_scores(scores_NC, labels_NC, reader.index.single_label)),
        "per_class": {
            label: _plain({"ap": precision_C[c], "auc": auc_C[c], "positives": labels_NC[:, c].sum()})
            for c, label in enumerate(reader.index.labels)
        },
        "clips_listed": reader.index.splits[identity["split"]]["listed"],
        "clips_evaluated": len(reader),
    }
    write_json(output / f"{name}.json", result)
    return result


def _plain(values: dict[str, Any]) -> dict[str, float | None]:
    """What JSON can hold: None for a number that is not defined or infinite."""
    return {key: float(value) if math.isfinite(value) else None for key, value in values.items()}


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items()}


def _draw(settings: EvaluateSettings, output: Path, results: dict[str, dict[str, Any]]) -> None:
    name, result = list(results.items())[-1]
    precision = _numbers({label: row["ap"] for label, row in result["per_class"].items()})
    chance = _numbers(result["metrics"])["chance_mAP"]
    plot_per_class(output / "per_class_ap.png", f"{settings.experiment}, {name}: average precision", precision, chance)
    members = sorted((settings.run_dir / "members").glob("*/metrics.jsonl"))
    plot_curves(output / "learning_curves.png", {path.parent.name: read_history(path) for path in members})


def _log(settings: EvaluateSettings, output: Path, summary: dict[str, dict[str, float]], facts: dict[str, str]) -> None:
    tracking.open_store(settings.tracking)
    tags = {"stage": "evaluate", "run_dir": str(settings.run_dir), **facts}
    params = {"shards": settings.shards, "split": settings.data.test_split}
    with tracking.start_run(settings.experiment, f"{settings.experiment}-evaluate", params, tags) as run_id:
        flat = {f"{name}.{key}": value for name, scores in summary.items() for key, value in scores.items()}
        tracking.log_metrics(run_id, flat)
        tracking.log_artifacts(run_id, output)


def _table(summary: dict[str, dict[str, float]], results: dict[str, dict[str, Any]]) -> Table:
    last = list(results.values())[-1]
    title = f"evaluate: {last['clips_evaluated']} of {last['clips_listed']} listed clips of {last['split']}, each once"
    keys = [key for key in ("accuracy", "mAP", "mAUC", "d_prime") if key in next(iter(summary.values()))]
    table = Table("bundle", title=title)
    for key in keys:
        table.add_column("d'" if key == "d_prime" else key, justify="right")
    for name, scores in summary.items():
        table.add_row(name, *(f"{scores[key]:.4f}" for key in keys), style="bold" if name == "ensemble" else "")
    chance = next(iter(summary.values())) | {"chance_mAUC": 0.5, "chance_d_prime": 0.0}
    table.add_row("chance", *(f"{chance[f'chance_{key}']:.4f}" for key in keys), style="dim")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: evaluate(parse(EvaluateSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.evaluate import main

    main()
