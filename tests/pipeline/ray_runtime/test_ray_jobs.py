"""`ray job submit` to a real cluster with tokens: a training, a study, their errors, their end by `ray job stop`."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest
import requests
from clusters import Cluster
from launches import ROOT, has_epoch, last_step, newest_step, training_flags, wait_until
from listed_audio import flags, prepare_settings, require_balance, write_clips, write_list
from prepared import write_shards

from ast_core.shards.index import ShardIndex

pytestmark = [pytest.mark.timeout(400)]
UPLOADED_BYTES = 2_000_000
"""At most; the virtual environment alone is gigabytes."""
STUDY = """
title = "Two rates"
[variants.slow.optim]
learning_rate = 1e-4
[variants.fast.optim]
learning_rate = 1e-3
"""


@pytest.fixture
def folder(tmp_path: Path, new_store) -> Path:
    new_store(tmp_path)
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    return tmp_path


def submit(
    cluster: Cluster, entrypoint: list[str], *options: str, variables: dict[str, str] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = json.dumps({"env_vars": variables or {}})
    return cluster.ray(
        "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT), "--runtime-env-json", environment,
        *options, "--", "python", *entrypoint, **more,
    )  # fmt: skip


def test_a_job_shows_its_result_and_uploads_little(tmp_path: Path, ray_cluster: Cluster) -> None:
    """Check a job whose workers run the uploaded code; the long form also trains, as the guides do."""
    clips = write_clips(tmp_path / "data", 8)
    settings = prepare_settings(write_list(tmp_path / "data" / "list.csv", clips), tmp_path / "run" / "shards")
    done = submit(ray_cluster, ["pipeline/prepare.py", *flags(settings)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(clips)} clips in" in done.stdout
    assert "succeeded" in done.stdout
    require_balance(ShardIndex.load(settings.shards), settings.shards, len(clips))
    uploaded = [
        sum(path.stat().st_size for path in package.rglob("*.*") if path.is_file() and path.suffix != ".pyc")
        for package in ray_cluster.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
        if package.is_dir()
    ]
    assert uploaded
    assert max(uploaded) < UPLOADED_BYTES


@pytest.mark.long
def test_a_training_job_shows_its_result(folder: Path, ray_cluster: Cluster) -> None:
    done = submit(ray_cluster, ["pipeline/train.py", *training_flags(folder, "job", 2)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed-0: training" in done.stdout
    assert "succeeded" in done.stdout
    rows = (folder / "job" / "members" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2]


@pytest.mark.long
def test_a_study_job_shows_its_table(folder: Path, ray_cluster: Cluster) -> None:
    (folder / "rates.toml").write_text(STUDY)
    words = [*training_flags(folder, "study", 2), "--study", str(folder / "rates.toml"), "--workers", "1"]
    done = submit(ray_cluster, ["tune/search.py", *words, "--winner", str(folder / "best.toml")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Two rates" in done.stdout
    assert {"slow", "fast"} <= set(done.stdout.split())
    best = tomllib.loads((folder / "best.toml").read_text())
    assert best["optim"]["learning_rate"] in {1e-4, 1e-3}


@pytest.mark.long  # a step's error and a job's output each have a test of their own
def test_a_wrong_recipe_key_fails_the_job_with_its_sentence(folder: Path, ray_cluster: Cluster) -> None:
    recipe = folder / "wrong.toml"
    recipe.write_text("[optim]\nlerning_rate = 1e-3\n")
    done = submit(ray_cluster, ["pipeline/train.py", "--recipe", str(recipe)])
    assert done.returncode != 0
    assert "optim.lerning-rate" in done.stdout
    assert "optim.learning-rate" in done.stdout  # the suggestion


def test_without_the_token_nothing_is_taken(ray_cluster: Cluster) -> None:
    done = submit(ray_cluster, ["pipeline/train.py", "--help"], RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert done.returncode != 0
    assert "succeeded" not in done.stdout
    for token, status in (("", 401), ("0" * 32, 403)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = requests.get(f"{ray_cluster.dashboard}/api/jobs/", headers=headers, timeout=10)
        assert answer.status_code == status


@pytest.mark.long
def test_a_stopped_job_loses_no_step(folder: Path, ray_cluster: Cluster) -> None:
    member = folder / "stopped" / "members" / "seed-0"
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": "25", "AST_LOG_LEVEL": "DEBUG"}
    words = ["pipeline/train.py", *training_flags(folder, "stopped", 3000)]
    started = submit(ray_cluster, words, "--no-wait", "--submission-id", "to-stop", variables=variables)
    assert started.returncode == 0, started.stdout + started.stderr
    jobs = ("--address", ray_cluster.dashboard, "to-stop")
    wait_until(lambda: has_epoch(member, 2), lambda: _status(ray_cluster, "to-stop") in {"PENDING", "RUNNING"})
    stopped = ray_cluster.ray("job", "stop", *jobs)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert _status(ray_cluster, "to-stop") == "STOPPED"
    log, run = ray_cluster.logs(), folder / "stopped"
    assert f"seed-0 stopped at step {newest_step(member)}" in ray_cluster.ray("job", "logs", *jobs).stdout
    assert newest_step(member) == last_step(log, run, 0) == last_step(log, run, 1)


def _status(cluster: Cluster, job: str) -> str:
    return str(cluster.ask(f"/api/jobs/{job}")["status"])
