"""Each promise has a proof in `make test`: rows of the reliability page, and what needs Ray, a server or much time."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "concepts" / "reliability.md"
PROOFS = {
    "recordings become a registered model with one command": (
        "tests/pipeline/test_run.py::test_the_main_job_goes_from_recordings_to_predictions"
    ),
    "registry, bundle and MLflow's loader predict the same": (
        "tests/pipeline/test_run.py::test_registry_bundle_and_mlflows_loader_predict_the_same_with_rows_for_broken_files"
    ),
    "the notebook runs": "tests/test_examples.py::test_notebook_goes_from_recordings_to_a_registered_model",
    "Ray starts below a long temporary folder": (
        "tests/test_examples.py::test_notebook_goes_from_recordings_to_a_registered_model"
    ),
    "shards hold Kaldi's filterbanks": "tests/pipeline/test_prepare_ray.py::test_shards_hold_the_filterbanks_of_kaldi",
    "members share workers, and one that fails costs no other": (
        "tests/pipeline/ray_runtime/test_worker_group.py"
        "::test_members_in_one_group_equal_those_trained_alone_and_one_that_fails_costs_no_other"
    ),
    "scores of Ray's workers are those of one process": (
        "tests/pipeline/test_evaluate.py::test_scores_equal_those_of_one_process_and_are_kept"
    ),
    "cross-validation holds out each fold once": (
        "tests/pipeline/test_cross_validate.py::test_each_fold_is_held_out_once_and_a_rerun_trains_nothing"
    ),
    "thresholds are fitted, stored and used": (
        "tests/pipeline/test_calibrate.py::test_thresholds_are_fitted_stored_and_used"
    ),
    "a student is compared with its teacher": (
        "tests/pipeline/scoring/test_distillation.py::test_a_smaller_student_is_compared_with_its_teacher"
    ),
    "a study stops its worse trials early, and frees their workers": (
        "tests/tune/test_search.py"
        "::test_early_stopping_ends_the_worse_trials_that_tpe_draws_and_a_rerun_changes_no_result"
    ),
    "an invalid variant of a study fails alone": (
        "tests/tune/test_search.py"
        "::test_failed_variant_is_named_with_its_reason_and_a_rerun_without_it_changes_no_result"
    ),
    "a killed search by TPE draws the points of an undisturbed one": (
        "tests/tune/test_tpe_draws.py"
        "::test_search_that_was_killed_at_any_moments_draws_the_points_of_an_undisturbed_one"
    ),
    "members of a study become ensembles": (
        "tests/tune/test_search.py::test_finished_study_is_not_run_again_and_its_members_become_ensembles"
    ),
    "ray job submit uploads little and shows the result": (
        "tests/pipeline/ray_runtime/test_ray_jobs.py::test_a_job_shows_its_result_and_uploads_little"
    ),
    "a cluster with tokens takes no job without one": (
        "tests/pipeline/ray_runtime/test_ray_jobs.py::test_without_the_token_nothing_is_taken"
    ),
    "--gpus yes starts a node of an autoscaler": (
        "tests/cluster/test_autoscaled_gpus.py::test_the_wait_for_gpus_starts_a_node_that_then_runs_the_work"
    ),
    "a node dies while preparing, and no clip is lost": (
        "tests/cluster/test_nodes.py::test_a_node_dies_while_preparing_and_no_clip_is_lost_or_twice"
    ),
    "a killed prepare from Parquet files continues to the same bytes": (
        "tests/reliability/test_prepare_killed.py::test_killed_at_random_instants"
    ),
    "a killed predict is completed to the same files": (
        "tests/pipeline/test_predict_many.py::test_a_killed_run_is_completed_to_the_same_files"
    ),
    "predict on Ray gives the same rows for any number of workers, also after a kill": (
        "tests/pipeline/test_predict_ray.py::test_rows_are_the_same_for_one_and_two_workers_and_for_a_killed_worker"
    ),
    "another node continues from the object store to the same bits": (
        "tests/cluster/test_another_node.py::test_another_node_goes_on_from_the_store_to_the_same_weights"
    ),
    "steps of Kubeflow register a model": (
        "tests/kubernetes/test_kubeflow.py::test_steps_of_the_main_job_in_one_process_register_a_model"
    ),
    "the MLflow server of the manifests answers its services' names only": (
        "tests/kubernetes/test_mlflow_server.py::test_server_answers_only_requests_for_its_services_names"
    ),
    "only a better version becomes champion": (
        "tests/pipeline/test_register.py::test_only_a_better_version_on_the_same_clips_becomes_champion"
    ),
    "MLflow's server serves a model to many clients": (
        "tests/reliability/test_load.py::test_parallel_clients_get_the_bundles_own_answers"
    ),
    "models of the old code load": (
        "tests/test_compatibility.py::test_mlflow_loads_a_model_that_the_old_code_registered"
    ),
    "ONNX predicts the same": (
        "tests/pipeline/test_export.py"
        "::test_onnx_of_an_ensemble_predicts_the_same_for_any_length_and_batch_and_hugging_face_of_one_is_refused"
    ),
    "compiled blocks have the same gradient": (
        "tests/ast_core/training/test_trainer.py::test_compiled_blocks_return_the_same_gradient_under_the_same_names"
    ),
    "the wheel runs without a checkout": (
        "tests/test_wheel.py::test_program_shows_version_stages_and_recipes_in_another_folder"
    ),
    "the benchmarks of parity and of a training step print their figures": (
        "tests/test_benchmarks.py::test_a_benchmark_prints_its_figure_without_ray_and_mlflow"
    ),
}
"""Test that proves a promise in the short form, by promise. The reliability page has the promises about faults."""


def is_long(decorators: list[ast.expr]) -> bool:
    """Return whether a marker of these leaves the complete test to `make test-all`."""
    return any(re.search(r"\bmark\.long$", ast.unparse(decorator)) for decorator in decorators)


@functools.cache
def short_tests(path: Path) -> dict[str, str]:
    """Return the source of each test of a file that `make test` runs, by name."""
    tree, found = ast.parse(path.read_text()), {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            markers = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            if is_long(markers):
                return {}
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not is_long(node.decorator_list):
            found[node.name] = ast.unparse(node)
    return found


def rows() -> list[tuple[str, list[str]]]:
    """Return first cell and test files of each row of the reliability page."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [(line.split("|")[1].strip(), re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)`", line)) for line in lines]
    return [(first, files) for first, files in cells if files]


def path_of(name: str) -> Path:
    (found,) = {*(ROOT / "tests").rglob(name)}
    return found


@pytest.mark.parametrize(("row", "files"), rows(), ids=[row for row, _ in rows()])
def test_each_row_of_the_reliability_page_has_a_test_in_the_short_form(row: str, files: list[str]) -> None:
    sources = [source for file in files for source in short_tests(path_of(file)).values()]
    assert sources, f"no test of {files} is in `make test`"
    numbers = re.findall(r"R\d+", row)
    if numbers:
        noted = [number for number in numbers if any(f"measured('{number}'" in source for source in sources)]
        assert noted, f"no test of {files} in `make test` measures {row}"


def test_the_page_has_all_rows() -> None:
    numbers = {int(number) for row, _ in rows() for number in re.findall(r"R(\d+)", row)}
    assert numbers >= set(range(1, 31))


@pytest.mark.parametrize("promise", PROOFS)
def test_each_promise_has_a_test_in_the_short_form(promise: str) -> None:
    file, _, name = PROOFS[promise].partition("::")
    assert name in short_tests(ROOT / file), f"{promise}: {name} is not in `make test`"


def test_long_markers_are_found() -> None:
    markers = ["pytest.mark.slow", "pytest.mark.long", "pytest.mark.parametrize('a', [pytest.param(1, marks=long)])"]
    assert [is_long([ast.parse(marker, mode="eval").body]) for marker in markers] == [False, True, False]
