"""Steps of the Kubeflow pipelines: each runs one stage, on a Ray cluster or locally, and shows its logged results.

Kubeflow ships only each function's source, so a function imports everything it needs from the image's packages.
"""

import os
from pathlib import Path

import yaml
from kfp import dsl

VALUES = yaml.safe_load((Path(__file__).resolve().parents[1] / "values" / "values.yaml").read_text())["spec"]
IMAGE = os.environ.get("IMAGE", VALUES["image"])
"""Image of the steps; `make pipelines IMAGE=registry.example/ast-pipeline:0.1.0` sets another one."""
component = dsl.component(base_image=IMAGE, install_kfp_package=False)


@component
def plan(
    recipe: str, data_source: str, run_dir: str, tracking: str, experiment: str, model_name: str, workers: int,
    changes: dict, ray_cluster: str, ray_job: str,
) -> str:  # fmt: skip
    """Check the parameters, fill in the empty ones and return JSON text; in a dict, Kubeflow would make 1 to 1.0."""
    from pipeline.kubeflow_steps.plan import Plan

    resolved = Plan(
        recipe, data_source, run_dir, tracking, experiment, model_name, workers, changes, ray_cluster, ray_job
    ).resolve()
    return resolved.to_json()


@component
def prepare(plan: str):
    """Prepare shards from the recordings."""
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step

    run_step(Plan.load(plan), "prepare")


@component
def train(plan: str, seed: int, metrics: dsl.Output[dsl.Metrics]):
    """Train one member and show the metrics of its last epoch."""
    from pipeline.kubeflow_steps.logged_results import logged_metrics
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step

    own = Plan.load(plan)
    run_step(own, "train", ["--seed", str(seed)])
    for name, value in logged_metrics(own, "train", seed=str(seed)).items():
        metrics.log_metric(name, value)


@component
def combine(plan: str, seeds: list[int]):
    """Average each member's epochs and build the ensemble of the members."""
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step

    run_step(Plan.load(plan), "combine", ["--ensemble.seeds", *(str(int(seed)) for seed in seeds)])


@component
def evaluate(plan: str, metrics: dsl.Output[dsl.Metrics], table: dsl.Output[dsl.Markdown]):
    """Test members and ensemble, and show all metrics and a table of the headline ones."""
    from pathlib import Path

    from pipeline.kubeflow_steps.logged_results import logged_metrics, results_table
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step

    own = Plan.load(plan)
    run_step(own, "evaluate")
    logged = logged_metrics(own, "evaluate")
    for name, value in logged.items():
        metrics.log_metric(name, value)
    Path(table.path).write_text(results_table(logged))


@component
def calibrate(plan: str, wanted: bool):
    """Fit thresholds on the validation split, for recipes that have one."""
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step

    if wanted:
        run_step(Plan.load(plan), "calibrate")


@component
def register(plan: str, model: dsl.Output[dsl.Model]) -> int:
    """Register the bundles; return the version, and the model's URI as an artifact."""
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step
    from pipeline.tracking import mlflow_store, registry

    own = Plan.load(plan)
    run_step(own, "register")
    mlflow_store.open_store(own.tracking)
    newest = registry.version_of_alias(own.model_name, registry.CHALLENGER)
    champion = registry.version_of_alias(own.model_name, registry.CHAMPION)
    model.uri = f"models:/{own.model_name}/{newest.number}"
    model.metadata.update(name=own.model_name, version=newest.number, champion=champion == newest)
    return newest.number


@component
def report(plan: str, page: dsl.Output[dsl.HTML]):
    """Write the report of the run and show it."""
    from pathlib import Path

    from pipeline.kubeflow_steps.logged_results import fetch_logged
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step

    own = Plan.load(plan)
    run_step(own, "report")
    fetch_logged(own, "evaluate", "report.html", Path(page.path))


@component
def search(plan: str, study: str, repeats: int, metrics: dsl.Output[dsl.Metrics], table: dsl.Output[dsl.Markdown]):
    """Run a study's trials in parallel on the Ray cluster, and show its table and each variant's metrics."""
    from pathlib import Path

    from pipeline.kubeflow_steps.logged_results import fetch_logged, logged_metrics
    from pipeline.kubeflow_steps.plan import Plan
    from pipeline.kubeflow_steps.run_step import run_step

    own = Plan.load(plan)
    run_step(own, "search", ["--study", study, "--repeats", str(repeats)])
    name = Path(study).stem
    for key, value in logged_metrics(own, "study", study=name).items():
        metrics.log_metric(key, value)
    fetch_logged(own, "study", f"study/{name}.md", Path(table.path))
