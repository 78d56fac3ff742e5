"""The Kubeflow pipelines: their load_compiled files, the commands of their steps, and runs in kfp's local runner."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mlflow
import pytest
import ray
from kube_api import KubeAPI
from manifest_checks import check_image, check_ray_job
from manifests import K8S, ROOT, Manifest, load_all

from ast_core.errors import UserError
from pipeline.kubeflow_steps.plan import STAGES, Plan, ray_job
from pipeline.kubeflow_steps.run_step import run_step
from pipeline.tracking import mlflow_store

OWN = {
    "train": ["--seed", "0"],
    "combine": ["--ensemble.seeds", "0", "1", "2"],
    "search": ["--study", "overlap", "--repeats", "3"],
}
"""Flags that the components add to a stage's flags."""
NAMES = ("main_job", "study")
TRACKING = "http://mlflow.ast:5000"
"""Default of the pipelines' parameter `tracking`."""
RECIPE = """
data.layout = "folders"
prepare.clips_per_part = 8
front_end.target_frames = 48
[model]
backbone = "ast_micro"
patch_freq = 128
patch_time = 8
freq_stride = 128
time_stride = 8
init = "scratch"
[augment]
freq_mask_bins = 8
time_mask_frames = 8
[optim]
epochs = 3
batch_size = 6
learning_rate = 1e-3
warmup_steps = 4
loss = "bce"
average_first_epoch = 2
"""
STUDY = """
title = "Two rates"
[grid.optim]
learning_rate = [1e-3, 1e-4]
"""


@pytest.fixture(autouse=True)
def own_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore `print`, because parallel loops in kfp's local runner may leave its own, which indents."""
    monkeypatch.setattr(builtins, "print", print)


def pipelines() -> ModuleType:
    """Return the module of the pipelines, whose import compiles them and takes seconds."""
    return importlib.import_module("pipelines")


def load_compiled(name: str) -> Manifest:
    return next(load_all((K8S / "kubeflow" / f"{name}.yaml").read_text()))


def default_plan(name: str) -> Plan:
    """Return the plan that a pipeline's first step makes of the default parameters."""
    inputs = load_compiled(name)["root"]["inputDefinitions"]["parameters"]
    values = {field.name: inputs.get(field.name, {}).get("defaultValue", "") for field in dataclasses.fields(Plan)}
    return Plan(**{**values, "workers": int(values["workers"])}).resolve()


def test_compiled_pipelines_equal_the_committed_files(tmp_path: Path) -> None:
    # A process of its own, because kfp reads the sources of all callers: with those of pytest it takes 10 s longer.
    program = "import sys, pipelines; pipelines.compile_to(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, tmp_path], cwd=K8S / "kubeflow", check=True)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (tmp_path / f"{name}.yaml").read_bytes() == (K8S / "kubeflow" / f"{name}.yaml").read_bytes(), (
            f"{name}.yaml is stale; run `make pipelines`"
        )


@pytest.mark.parametrize("stage", STAGES)
def test_ray_job_of_a_step_is_valid_and_its_flags_parse(stage: str) -> None:
    plan = default_plan("study" if stage == "search" else "main_job")
    job = ray_job(plan, stage, OWN.get(stage, []))
    settings = check_ray_job(job, TRACKING)
    assert settings.experiment == "audioset_full"
    assert getattr(settings, "model_name", plan.model_name) == plan.model_name == "ast-audioset-full"
    assert getattr(settings, "gpus", "yes") == "yes"  # the cluster has a group of GPU nodes, without a node at first
    assert isinstance(job["spec"]["activeDeadlineSeconds"], int)  # Kubeflow makes a dict's integers floats
    with pytest.raises(SystemExit):
        check_ray_job(ray_job(plan, stage, [*OWN.get(stage, []), "--no-such-flag", "1"]), TRACKING)


def test_changes_reach_only_the_stages_that_take_them() -> None:
    changes = {"optim.epochs": 4.0, "data.train_splits": ["balanced", "unbalanced"], "bootstrap": 100.0, "gpus": "no"}
    plan = dataclasses.replace(default_plan("main_job"), changes=changes).resolve()
    found = {stage: check_ray_job(ray_job(plan, stage, OWN.get(stage, [])), TRACKING) for stage in STAGES}
    assert found["train"].optim.epochs == found["combine"].optim.epochs == found["search"].optim.epochs == 4
    assert found["prepare"].data.train_splits == found["evaluate"].data.train_splits == ("balanced", "unbalanced")
    assert found["evaluate"].bootstrap == 100
    assert found["train"].gpus == found["evaluate"].gpus == found["search"].gpus == "no"


def test_invalid_plan_raises_a_user_error() -> None:
    plan = default_plan("main_job")
    for change, sentence in (
        (
            {"changes": {"optin.epochs": 1}},
            "changes holds optin.epochs, which no stage takes. Begin each key with one of .*optim",
        ),
        ({"run_dir": "work/esc50"}, "absolute path"),
        ({"data_source": "ESC-50"}, "absolute path"),
    ):
        with pytest.raises(UserError, match=sentence):
            dataclasses.replace(plan, **change).resolve()
    other = ray_job(dataclasses.replace(plan, ray_cluster="other"), "prepare")
    check_ray_job(other, TRACKING)  # with the other cluster's token


@pytest.mark.parametrize("name", NAMES)
def test_pipelines_use_the_projects_image_without_cache_and_download(name: str) -> None:
    content = load_compiled(name)
    for executor in content["deploymentSpec"]["executors"].values():
        check_image(executor["container"]["image"])
        assert "pip install" not in " ".join(executor["container"]["command"])
        assert {"resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"} <= set(
            executor["container"]["resources"]
        )
    dags = [content["root"]["dag"], *(own["dag"] for own in content["components"].values() if "dag" in own)]
    steps = {task: spec for dag in dags for task, spec in dag["tasks"].items() if not task.startswith("for-loop")}
    assert all(not spec["cachingOptions"].get("enableCache") for spec in steps.values())


def test_members_train_in_parallel_between_prepare_and_combine() -> None:
    content = load_compiled("main_job")
    tasks = content["root"]["dag"]["tasks"]
    order = ["prepare", "members", "combine", "evaluate", "calibrate", "register", "report"]
    for before, after in itertools.pairwise(order):
        assert before in tasks[after]["dependentTasks"]
    (loop,) = content["components"]["comp-members"]["dag"]["tasks"].values()
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--seeds"}
    artifacts = {
        schema["artifactType"]["schemaTitle"]
        for own in content["components"].values()
        for schema in own.get("outputDefinitions", {}).get("artifacts", {}).values()
    }
    assert artifacts == {"system.Metrics", "system.Markdown", "system.HTML", "system.Model"}


@pytest.mark.slow
def test_step_submits_its_ray_job_and_raises_its_error(tmp_path: Path, monkeypatch, capsys) -> None:
    """Check that the step submits the stage's own command, which runs as a process."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.chdir(ROOT)
    plan = dataclasses.replace(default_plan("main_job"), recipe="no_such_recipe")
    with KubeAPI() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        with pytest.raises(UserError, match=r"(?s)AppFailed.*Recipe 'no_such_recipe' does not exist. Give a TOML file"):
            run_step(plan, "prepare")
    assert api.created == [ray_job(plan, "prepare")]
    assert "RayJob pipeline-prepare-1: Failed FAILED" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path: Path, save_tone, new_store) -> Path:
    new_store(tmp_path)
    for label, pitch_hz in {"deep": 200.0, "high": 3200.0}.items():
        for number in range(7):
            split = "train" if number < 5 else "test"
            save_tone(tmp_path / "clips" / split / label / f"{number}.wav", pitch_hz=pitch_hz + 9 * number, seed=number)
    (tmp_path / "mine.toml").write_text(RECIPE)
    (tmp_path / "rates.toml").write_text(STUDY)
    return tmp_path


@pytest.fixture
def one_ray(ray_session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of all steps use the Ray of the tests."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray looks for it at the network's address


def parameters(folder: Path) -> dict[str, object]:
    return {
        "recipe": str(folder / "mine.toml"), "data_source": str(folder / "clips"), "run_dir": str(folder / "run"),
        "workers": 1, "tracking": f"sqlite:///{folder / 'mlflow.db'}",
    }  # fmt: skip


def shown(folder: Path, step: str) -> Path:
    (found,) = (folder / "shown").glob(f"**/{step}")
    return found


def metrics_of(step: Path) -> dict[str, float]:
    artifacts = json.loads((step / "executor_output.json").read_text())["artifacts"]
    return artifacts["metrics"]["artifacts"][0]["metadata"]


def run_in_this_process(command: list[str], stage: str) -> None:
    """Run a stage as its step starts it, but here."""
    importlib.import_module(STAGES[stage][0].removesuffix(".py").replace("/", ".")).main(command[2:])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_steps_of_the_main_job_in_one_process_register_a_model(folder: Path, without_ray, monkeypatch) -> None:
    """Check the code of the components and the flags of their stages; kfp's runner only starts them as processes."""
    import components  # noqa: PLC0415  # imports kfp, which takes seconds
    from kfp import dsl  # noqa: PLC0415

    monkeypatch.setattr("pipeline.kubeflow_steps.run_step._run_process", run_in_this_process)
    own = parameters(folder) | {"changes": {"optim.epochs": 2.0}}
    empty = dict.fromkeys(components.plan.component_spec.inputs, "")
    plan = components.plan.python_func(**{**empty, **own})
    (page, table), model = (folder / "page", folder / "table"), SimpleNamespace(uri="", metadata={})
    metrics = {name: dsl.Metrics() for name in ("train", "evaluate")}
    components.prepare.python_func(plan=plan)
    for seed in (0, 1):
        components.train.python_func(plan=plan, seed=seed, metrics=metrics["train"])
    components.combine.python_func(plan=plan, seeds=[0.0, 1.0])
    components.evaluate.python_func(plan=plan, metrics=metrics["evaluate"], table=SimpleNamespace(path=table))
    components.calibrate.python_func(plan=plan, wanted=False)
    version = components.register.python_func(plan=plan, model=model)
    components.report.python_func(plan=plan, page=SimpleNamespace(path=page))

    assert metrics["train"].metadata["epoch"] == 2
    check_results(folder, metrics["evaluate"].metadata, table.read_text())
    assert page.read_text() == (folder / "run" / "report.html").read_text()
    assert (model.uri, version) == ("models:/ast-mine/1", 1)
    check_model(folder, model.uri)


def check_results(folder: Path, numbers: dict[str, float], table: str) -> None:
    """Check that the shown metrics and table are those of the run's evaluation."""
    summary = json.loads((folder / "run" / "evaluation" / "summary.json").read_text())
    assert set(summary) == {"ensemble", "seed-0", "seed-0-last", "seed-1", "seed-1-last"}
    assert numbers["ensemble.mAP"] == pytest.approx(summary["ensemble"]["mAP"])
    assert f"| ensemble | {summary['ensemble']['accuracy']:.4f} |" in table


def check_model(folder: Path, uri: str) -> None:
    """Check that the registered model predicts."""
    mlflow_store.open_store(parameters(folder)["tracking"])  # also resets the registry, which other tests set
    recording = folder / "clips" / "test" / "high" / "6.wav"
    scores = mlflow.pyfunc.load_model(uri).predict({"audio": [recording.read_bytes()]})
    assert set(scores["probabilities"][0]) >= {"deep", "high"}


@pytest.mark.long  # twenty processes that each import torch, kfp or both
@pytest.mark.timeout(600)
def test_main_job_run_locally_registers_a_model(folder: Path, one_ray) -> None:
    own = parameters(folder) | {"seeds": [0, 1], "changes": {"optim.epochs": 2}}
    pipelines().run_here(pipelines().main_job, own, folder / "shown")

    check_results(folder, metrics_of(shown(folder, "evaluate")), (shown(folder, "evaluate") / "table").read_text())
    members = sorted((folder / "shown").glob("**/members/*/train"))
    assert [metrics_of(member)["epoch"] for member in members] == [2, 2]
    page = (shown(folder, "report") / "page").read_text()
    assert page == (folder / "run" / "report.html").read_text()

    registered = json.loads((shown(folder, "register") / "executor_output.json").read_text())
    (model,) = registered["artifacts"]["model"]["artifacts"]
    assert (model["uri"], registered["parameterValues"]["Output"]) == ("models:/ast-mine/1", 1)
    check_model(folder, model["uri"])


@pytest.mark.long  # takes a minute; the main job and the tests of studies cover most of it
@pytest.mark.timeout(600)
def test_study_pipeline_run_locally_shows_the_table(folder: Path, one_ray) -> None:
    study = parameters(folder) | {"study": str(folder / "rates.toml"), "repeats": 1}
    pipelines().run_here(pipelines().study, study, folder / "shown")
    table = (shown(folder, "search") / "table").read_text()
    assert table == (folder / "run" / "studies" / "rates" / "report" / "rates.md").read_text()
    assert len(metrics_of(shown(folder, "search"))) >= 2


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_failed_step_ends_the_pipeline_and_prints_its_error(folder: Path, capfd) -> None:
    with pytest.raises(RuntimeError, match="Inner task failed"):
        pipelines().run_here(pipelines().study, {**parameters(folder), "changes": {"no": 1}}, folder / "shown")
    assert "changes holds no, which no stage takes. Begin each key with one of " in capfd.readouterr().out


@pytest.mark.long  # the script compiles the pipelines first
def test_help_of_the_script_names_its_flag() -> None:
    done = subprocess.run(
        [sys.executable, K8S / "kubeflow" / "pipelines.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--here" in done.stdout
