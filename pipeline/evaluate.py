"""Evaluate every bundle of a run on the test split, each clip exactly once, spread over Ray's workers.

python pipeline/evaluate.py --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ast_core import metrics, order
from ast_core.bundle import DESCRIPTION, Bundle
from ast_core.config import require
from ast_core.errors import UserError
from ast_core.files import committed, digest, read_json, write_json
from ast_core.predictor import Predictor
from ast_core.shards import ShardReader
from pipeline import cluster, tracking
from pipeline.plots import plot_curves, plot_per_class
from pipeline.progress import read_history
from pipeline.settings import EvaluateSettings, parse, run_stage

CHUNK = 32
"""Clips a worker scores between two reports."""


class Scorer:
    """One worker: a bundle and the test split, both opened once.

    Args:
        bundle: folder.
        shards: folder.
        split: to score.
    """

    def __init__(self, bundle: Path, shards: Path, split: str) -> None:
        torch.set_num_threads(1)
        self._reader = ShardReader(shards, [split])
        self._predictor = Predictor(Bundle.load(bundle), "cuda" if torch.cuda.is_available() else "cpu")

    def score(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices and their clips' probabilities, float32 [len(indices), C]."""
        return indices, self._predictor.from_fbank(self._reader.read(indices))


def evaluate(settings: EvaluateSettings) -> dict[str, dict[str, float]]:
    """Score the bundles, write scores, metrics and pictures to `evaluation/`, log them.

    A bundle that was scored on this data already is not scored again.

    Returns:
        The metrics of `ast_core.metrics.evaluate_scores` by bundle.

    Raises:
        UserError: no bundle, no such split or no clip in it, or a bundle of other labels.
    """
    bundles = _bundles(settings.run_dir / "bundles")
    split = settings.data.test_split
    reader = ShardReader(settings.shards, [split])
    require(len(reader) > 0, f"The split {split} in {settings.shards} holds no clip to test on.")
    output = settings.run_dir / "evaluation"
    digests = {folder.name: str(read_json(folder / DESCRIPTION, "Bundle")["digest"]) for folder in bundles}
    results: dict[str, dict[str, Any]] = {}
    with cluster.connected(settings.address, settings.workers), Progress(console=Console(stderr=True)) as progress:
        for folder in bundles:
            identity = {"bundle_digest": digests[folder.name], "data_hash": reader.index.data_hash, "split": split}
            task = progress.add_task(f"evaluate {folder.name}", total=len(reader))
            results[folder.name] = _known(output / f"{folder.name}.json", identity)
            if not results[folder.name]:
                scores_NC = np.full(reader.labels_NC.shape, np.nan, np.float32)
                for indices, scores in _scored(folder, settings, reader):
                    scores_NC[indices] = scores
                    progress.advance(task, len(indices))
                results[folder.name] = _write(output, folder.name, identity, scores_NC, reader)
            progress.update(task, completed=len(reader))
    summary = {name: _numbers(result["metrics"]) for name, result in results.items()}
    write_json(output / "summary.json", {name: result["metrics"] for name, result in results.items()})
    _draw(settings, output, results)
    _log(settings, output, summary, {"data_hash": reader.index.data_hash, "bundles": digest(digests)})
    Console().print(_table(summary, results))
    return summary


def _bundles(folder: Path) -> list[Path]:
    """Members first, the ensemble last."""
    found = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    require(bool(found), f"There is no bundle in {folder}: run combine first.")
    return sorted(found, key=lambda path: path.name == "ensemble")


def _known(path: Path, identity: dict[str, str]) -> dict[str, Any]:
    """A result of the same bundle on the same data, with its scores; empty if there is none."""
    if not path.is_file() or not path.with_name(f"{path.stem}-scores.parquet").is_file():
        return {}
    result: dict[str, Any] = read_json(path, "Evaluation")
    return result if all(result.get(key) == value for key, value in identity.items()) else {}


def _scored(bundle: Path, settings: EvaluateSettings, reader: ShardReader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices and scores, chunk by chunk in any order; every clip once, or an error."""
    processors = int(ray.cluster_resources().get("CPU", 1))
    workers = max(1, min(cluster.worker_count(settings.workers), processors, math.ceil(len(reader) / CHUNK)))
    actor = ray.remote(Scorer).options(
        num_cpus=1, num_gpus=1 if cluster.uses_gpu() else 0, max_restarts=2, max_task_retries=2
    )
    scorers: list[Any] = [actor.remote(bundle, settings.shards, settings.data.test_split) for _ in range(workers)]
    waiting = []
    for rank, scorer in enumerate(scorers):
        share = order.evaluation_share(len(reader), rank, workers)
        waiting += [scorer.score.remote(share[first : first + CHUNK]) for first in range(0, len(share), CHUNK)]
    seen_N = np.zeros(len(reader), np.int64)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            indices, scores = ray.get(ready[0])
            _check_scores(bundle, scores, reader, indices)
            seen_N[indices] += 1
            yield indices, scores
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    finally:
        for scorer in scorers:
            ray.kill(scorer)
    wrong = int((seen_N != 1).sum())
    require(not wrong, f"{wrong} clips were not scored exactly once by {bundle}. Run evaluate again.")


def _check_scores(bundle: Path, scores: np.ndarray, reader: ShardReader, indices: np.ndarray) -> None:
    classes = reader.labels_NC.shape[1]
    require(scores.shape[1] == classes, f"{bundle} has {scores.shape[1]} labels, the shards in use have {classes}.")
    finite = np.isfinite(scores).all(axis=1)
    names = ", ".join(reader.clip_ids[index] for index in indices[~finite][:5])
    require(bool(finite.all()), f"{bundle} gives scores that are not finite for {names}: train it again.")


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
