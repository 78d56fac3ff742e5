"""A study run by Ray Tune over two variants, its table, and the ensembles of its members."""

from __future__ import annotations

import csv
import re
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from mlflow import MlflowClient
from studies import new_study, search_here, study_flags, train_in_trials, trials_folder
from without_ray import run_trial_without_ray

from ast_core.errors import UserError
from ast_core.evaluation.stored_scores import read_scores
from ast_core.storage.json_files import read_hashed_json, read_json
from ast_core.weights.bundle import Bundle
from ast_core.weights.ensemble_mean import mean_probabilities
from pipeline.cli.command_line import parse_settings
from tune import trial as trial_module
from tune.ensemble import EnsembleSettings, ensemble
from tune.search import SearchSettings, search

DRAWN = """
early_stopping = "asha"
sampler = "tpe"
samples = 2
startup = 1
[variants.good]
[range.optim]
learning_rate = {low = 1e-9, high = 2e-9}
"""
"""Study of a good variant and of two that TPE draws, which learn nothing."""


@pytest.fixture
def folder(tmp_path: Path, new_store) -> Path:
    new_store(tmp_path)
    return new_study(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_finished_study_is_not_run_again_and_its_members_become_ensembles(searched: Path, without_ray) -> None:
    settings = parse_settings(EnsembleSettings, "", study_flags(searched, "--subsets", "--ensemble.epochs"))
    trials = trials_folder(searched)
    done = {path: path.stat().st_mtime_ns for path in trials.glob("*/*/trial.json")}
    assert len(done) == 3
    table, _ = search(settings)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert [(row.variant, len(row.scores), row.cost.patches) for row in table.rows] == [("wide", 2, 4), ("fine", 1, 7)]
    report = trials.parent / "report"
    rows = list(csv.DictReader((report / "strides.csv").open()))
    assert float(rows[0]["mean"]) == pytest.approx(table.rows[0].mean)
    assert {path.suffix for path in report.iterdir()} == {".csv", ".md", ".png"}
    best = tomllib.loads((searched / "best.toml").read_text())
    assert best["model"]["time_stride"] == {"wide": 8, "fine": 4}[table.best().variant]
    _check_tracked(searched)
    _check_ensembles(searched, ensemble(settings))
    _check_registered(searched)


def _check_tracked(folder: Path) -> None:
    """Check that both launches share one MLflow run, with a child a trial that holds its test metrics."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    parents = [run for run in runs if run.data.tags.get("stage") == "study"]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 3
    for child in children:
        assert any(key.endswith("last.accuracy") for key in child.data.metrics)
        assert "epoch" in child.data.metrics


def _check_ensembles(folder: Path, results: dict[str, dict[str, float]]) -> None:
    """Check that S averages the first variant's members and M all members, in scores and in bundles."""
    study = folder / "run" / "studies" / "strides"
    singles = ["fine-seed-0", "wide-seed-0", "wide-seed-1"]
    with_epochs = [name for single in singles for name in (single, f"{single}-epochs")]
    assert list(results) == [*with_epochs, "ensemble-s", "ensemble-m"]

    def stored(name: str) -> np.ndarray:
        identity = read_json(study / "evaluation" / f"{name}.json", "Evaluation")
        scores = read_scores(
            study / "evaluation" / f"{name}-scores.parquet",
            {key: identity[key] for key in ("bundle_digest", "data_hash", "split")},
        )
        assert scores is not None
        return scores

    members = ["wide-seed-0", "wide-seed-1", "fine-seed-0"]
    np.testing.assert_array_equal(stored("ensemble-s"), mean_probabilities([stored(name) for name in members[:2]]))
    np.testing.assert_array_equal(stored("ensemble-m"), mean_probabilities([stored(name) for name in members]))
    bundle = Bundle.load(study / "bundles" / "ensemble-m")
    assert [member.name for member in bundle.members] == members
    assert len(bundle.facts.train_runs) == 3
    subsets = (study / "report" / "subsets.csv").read_text().splitlines()
    assert len(subsets) == 1 + 3 + 1
    epochs = Bundle.load(study / "bundles" / "wide-seed-1-epochs")
    assert len(epochs.members) == 3
    assert (study / "evaluation" / "learning_curves.png").is_file()  # of the trials
    page = (study / "report.html").read_text()
    assert f"{results['ensemble-m']['accuracy']:.4f}" in page
    assert "strides" in (folder / "run" / "report.html").read_text()


def _check_registered(folder: Path) -> None:
    """Check that the largest ensemble has the recipe's model name, and every other bundle a model of its own."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    names = {model.name for model in client.search_registered_models()}
    own = {"fine-seed-0", "wide-seed-0", "wide-seed-1", "ensemble-s"}
    assert names == {"ast-esc50-small", *(f"ast-esc50-small-{name}" for name in own)}
    version = client.get_model_version_by_alias("ast-esc50-small", "champion")
    assert (version.tags["members"], version.tags["seeds"]) == ("3", "0, 1")
    assert len(version.tags["train_runs"].split(", ")) == 3


@pytest.mark.slow
def test_failed_variant_is_named_with_its_reason_and_a_rerun_without_it_changes_no_result(
    folder: Path, searched: Path
) -> None:
    trials = trials_folder(folder)
    shutil.copytree(trials_folder(searched), trials)
    study = folder / "strides.toml"
    sound = study.read_text()
    study.write_text(sound + "[variants.bad]\nrepeats = 1\noptim.learning_rate = 1e30\n")
    before = {path: path.stat().st_mtime_ns for path in trials.glob("*/*/trial.json")}
    with pytest.raises(UserError, match="1 of 4 trials failed: bad, seed 0"):
        search_here(folder, "--ensemble.epochs")
    reason = read_hashed_json(trials / "bad" / "seed-0" / "trial.json", "Trial")["reason"]
    assert re.match(r"Step \d+ of seed-0 is not finite", reason)
    assert "Traceback" not in reason

    study.write_text(sound)
    table = search_here(folder, "--ensemble.epochs")
    assert [row.failed for row in table.rows] == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def run_trial(config: dict[str, Any]) -> None:
    """Run a trial; the first one that TPE draws has workers of Ray Train, the others train in their own processes."""
    trial = config["trial"]
    journal = trial.folder.parents[2] / "tpe.json"
    first = read_hashed_json(journal, "Journal")["events"][0]["drawn"] if trial.variant != "good" else {}
    if f"{first.get('optim.learning_rate', 0):.4g}" == f"{trial.settings.optim.learning_rate:.4g}":
        trial_module.run_trial(config)
    else:
        run_trial_without_ray(config)


@pytest.mark.timeout(400)
def test_early_stopping_ends_the_worse_trials_that_tpe_draws_and_a_rerun_changes_no_result(
    folder: Path, ray_session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check a search by Ray Tune: TPE's trials learn nothing, so that ASHA stops them."""
    train_in_trials(monkeypatch, run_trial)
    (folder / "strides.toml").write_text(DRAWN)
    settings = parse_settings(SearchSettings, "", study_flags(folder, "--repeats", "1", "--optim.epochs", "6"))
    search(settings)
    _check_all_cpus_are_free()
    study = folder / "run" / "studies" / "strides"
    before = {path: path.read_bytes() for path in (*study.glob("trials/*/seed-0/trial.json"), study / "tpe.json")}
    results = [read_hashed_json(path, "Trial") for path in before if path.name == "trial.json"]
    statuses = {result["variant"]: result["status"] for result in results}
    assert statuses["good"] == "finished"
    assert "stopped" in statuses.values()
    assert len(statuses) == 3
    events = read_hashed_json(study / "tpe.json", "Journal")["events"]
    assert sorted(event["kind"] for event in events) == ["drawn", "drawn", "scored", "scored"]

    table, _ = search(settings)
    assert {path: path.read_bytes() for path in before} == before
    assert [row.sampler for row in table.rows] == ["", "tpe at random", "tpe"]
    assert {row.variant for row in table.rows} == statuses.keys()
    assert sum(row.stopped for row in table.rows) == list(statuses.values()).count("stopped")
    rows = list(csv.DictReader((study / "report" / "strides.csv").open()))
    assert [row["sampler"] for row in rows] == ["", "tpe at random", "tpe"]


def _check_all_cpus_are_free() -> None:
    """Check that a stopped trial's workers hold no CPU; the next trials would wait for ever for it."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)
