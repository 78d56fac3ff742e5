"""The main job and a study as Kubeflow pipelines. `make pipelines` compiles them to the YAML files in this folder.

To run a pipeline on this machine with kfp's own runner:
python k8s/kubeflow/pipelines.py --here main_job '{"recipe": "demo", "data_source": "synthetic", "run_dir": "work/kfp"}'
"""

import argparse
import json
import re
from pathlib import Path

import yaml
from components import IMAGE, VALUES, calibrate, combine, evaluate, plan, prepare, register, report, search, train
from kfp import compiler, dsl, local

FOLDER = Path(__file__).resolve().parent
RAY_JOB = (FOLDER.parent / "jobs" / "train.yaml").read_text()
RAY_JOB = json.dumps(yaml.safe_load(re.sub(r"image: \S+", f"image: {IMAGE}", RAY_JOB)))
TRACKING = VALUES["tracking"]
"""MLflow's address with its namespace, because the steps run in Kubeflow's namespace and the stages in `ast`."""
JOBS = VALUES["jobs"]


def _plan(*parameters):
    """Add the step that checks the parameters."""
    return _step(plan(**dict(zip(plan.component_spec.inputs, parameters, strict=True))), "plan")


def _step(task, name):
    """Set a step's name and resources; disable its cache, because the stages skip finished work themselves."""
    task.set_display_name(name).set_caching_options(False)
    return task.set_cpu_request("200m").set_memory_request("512Mi").set_memory_limit("2Gi")


@dsl.pipeline(name="members", description="Train one member for each seed, in parallel.")
def members(plan: str, seeds: list[int]):
    """Train the members in a pipeline of their own, because kfp's local runner runs a pipeline's loops last."""
    with dsl.ParallelFor(seeds, name="seeds") as seed:
        _step(train(plan=plan, seed=seed), "train")


@dsl.pipeline(name="ast-main-job", description="Train and register an ensemble of Audio Spectrogram Transformers.")
def main_job(
    recipe: str = JOBS["recipe"],
    data_source: str = JOBS["source"],
    run_dir: str = JOBS["run"],
    seeds: list[int] = JOBS["seeds"],
    workers: int = JOBS["trainers"],
    tracking: str = TRACKING,
    experiment: str = "",
    model_name: str = "",
    with_calibration: bool = False,
    changes: dict = {},
    ray_cluster: str = "ast",
    ray_job: str = RAY_JOB,
) -> int:
    """Prepare, train members in parallel, combine, evaluate, calibrate, register, report; return the version."""
    planned = _plan(
        recipe, data_source, run_dir, tracking, experiment, model_name, workers, changes, ray_cluster, ray_job
    )
    prepared = _step(prepare(plan=planned.output), "prepare")
    trained = members(plan=planned.output, seeds=seeds).set_caching_options(False).after(prepared)
    combined = _step(combine(plan=planned.output, seeds=seeds), "combine").after(trained)
    evaluated = _step(evaluate(plan=planned.output), "evaluate").after(combined)
    calibrated = _step(calibrate(plan=planned.output, wanted=with_calibration), "calibrate").after(evaluated)
    registered = _step(register(plan=planned.output), "register").after(calibrated)
    _step(report(plan=planned.output), "report").after(registered)
    return registered.outputs["Output"]


@dsl.pipeline(name="ast-study", description="Run a study of the paper or of your own and show its table.")
def study(
    study: str = "overlap",
    repeats: int = 3,
    recipe: str = JOBS["recipe"],
    data_source: str = JOBS["source"],
    run_dir: str = JOBS["run"],
    workers: int = JOBS["trialTrainers"],
    tracking: str = TRACKING,
    experiment: str = "",
    changes: dict = {},
    ray_cluster: str = "ast",
    ray_job: str = RAY_JOB,
):
    """Prepare the shards, then run the unfinished trials of a study."""
    planned = _plan(recipe, data_source, run_dir, tracking, experiment, "", workers, changes, ray_cluster, ray_job)
    prepared = _step(prepare(plan=planned.output), "prepare")
    _step(search(plan=planned.output, study=study, repeats=repeats), "search").after(prepared)


PIPELINES = {"main_job": main_job, "study": study}


def compile_to(folder):
    """Write NAME.yaml of each pipeline; equal sources produce equal bytes."""
    for name, pipeline in PIPELINES.items():
        compiler.Compiler().compile(pipeline, str(Path(folder) / f"{name}.yaml"))


def run_here(pipeline, parameters, outputs):
    """Run a pipeline in kfp's local runner, with its stages as processes of this machine.

    Args:
        pipeline: one of `PIPELINES`.
        parameters: parameters of the pipeline; `ray_cluster` is "" and `tracking` is sqlite in work/ by default.
        outputs: folder for the results that the steps show.
    """
    own = {"ray_cluster": "", "tracking": f"sqlite:///{Path('work/mlflow.db').absolute()}", "workers": 0, **parameters}
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(outputs))

    @dsl.pipeline(name=f"{pipeline.name}-here")
    def here():
        with dsl.ParallelFor([0]):  # the local runner accepts loops inside pipelines only with a loop outside
            pipeline(**own)

    here()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", nargs=2, metavar=("PIPELINE", "PARAMETERS"))
    given = parser.parse_args()
    if given.here:
        run_here(PIPELINES[given.here[0]], json.loads(given.here[1]), "work/kubeflow")
    else:
        compile_to(FOLDER)
