"""What a Kubeflow step shows of its stage: numbers, a table and the report, as MLflow has them.

From the tracker, not from the run's folder, so that a step needs no volume of the stages' cluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ast_core.errors import require
from pipeline.kubeflow_steps.plan import Plan
from pipeline.scoring.results import HEADLINES
from pipeline.tracking import mlflow_store, runs


def logged_metrics(plan: Plan, stage: str, **tags: str) -> dict[str, float]:
    """The last numbers that a stage logged, bundle by bundle; none if it was not tracked."""
    _, metrics = _run_of(plan, stage, tags)
    own = {name: value for name, value in metrics.items() if math.isfinite(value) and not name.startswith("system/")}
    return dict(sorted(own.items(), key=lambda item: item[0].rpartition(".")))


def fetch_logged(plan: Plan, stage: str, artifact: str, to: Path) -> None:
    """Copy an artifact of a stage's MLflow run, such as `report.html`, to a file.

    Raises:
        UserError: the stage was not tracked, or its run has no such artifact.
    """
    run_id, _ = _run_of(plan, stage, {})
    require(bool(run_id), f"MLflow at {plan.tracking} knows no {stage} of {plan.run_dir}: was it away?")
    runs.fetch_artifact(run_id, artifact, to)


def _run_of(plan: Plan, stage: str, tags: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    mlflow_store.open_store(plan.tracking)
    return runs.newest_run(plan.experiment, {"stage": stage, "run_dir": plan.run_dir, **tags})


def results_table(metrics: Mapping[str, float]) -> str:
    """Markdown of an evaluation's numbers: bundles down, headline metrics across."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        bundle, _, metric = name.rpartition(".")
        rows.setdefault(bundle, {})[metric] = value
    shown = [key for key in HEADLINES if any(key in row for row in rows.values())]
    lines = [["bundle", *shown], ["---", *["---:" for _ in shown]]]
    lines += [[name, *[f"{row[key]:.4f}" if key in row else "" for key in shown]] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
