"""Results that a Kubeflow step shows for its stage: metrics, a table and the report.

They come from MLflow and not from the run's folder, so a step needs no volume of the cluster that runs the stages.
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
    """Return the last metrics that a stage logged, sorted by bundle; empty if MLflow has no run of the stage."""
    _, metrics = _find_run(plan, stage, tags)
    own = {name: value for name, value in metrics.items() if math.isfinite(value) and not name.startswith("system/")}
    return dict(sorted(own.items(), key=lambda item: item[0].rpartition(".")))


def fetch_logged(plan: Plan, stage: str, artifact: str, to: Path) -> None:
    """Copy an artifact of a stage's MLflow run, such as `report.html`, to a file.

    Raises:
        UserError: MLflow has no run of the stage, or the run does not have the artifact.
    """
    run_id, _ = _find_run(plan, stage, {})
    require(
        bool(run_id),
        f"MLflow at {plan.tracking} has no run of {stage} for {plan.run_dir}. "
        "Run the step again while MLflow can be reached.",
    )
    runs.fetch_artifact(run_id, artifact, to)


def _find_run(plan: Plan, stage: str, tags: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Return id and metrics of the newest run of a stage; "" if MLflow has no run."""
    mlflow_store.open_store(plan.tracking)
    return runs.newest_run(plan.experiment, {"stage": stage, "run_dir": plan.run_dir, **tags})


def results_table(metrics: Mapping[str, float]) -> str:
    """Return a Markdown table of an evaluation with a row a bundle and a column a headline metric."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        bundle, _, metric = name.rpartition(".")
        rows.setdefault(bundle, {})[metric] = value
    shown = [key for key in HEADLINES if any(key in row for row in rows.values())]
    lines = [["bundle", *shown], ["---", *["---:" for _ in shown]]]
    lines += [[name, *[f"{row[key]:.4f}" if key in row else "" for key in shown]] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
