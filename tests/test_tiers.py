"""A test without the marker `ray` or `server` can start neither, so that `make check` stays quick."""

from __future__ import annotations

import os
import subprocess

import pytest
from tiers import _needed_marker


@pytest.mark.parametrize(
    ("command", "marker"),
    [
        (["/venv/ray/core/src/ray/gcs/gcs_server", "--port=1"], "ray"),
        (["nsenter", "-t", "1", "/venv/bin/ray", "start", "--head"], "ray"),
        ("ray start --head", "ray"),
        (["/venv/bin/mlflow", "server", "--port=1"], "server"),
        (["python", "-m", "moto.server"], "server"),
        (["python", "pipeline/train.py"], None),
        (["mlflow"], None),
    ],
)
def test_commands_that_start_ray_or_a_server_need_its_marker(command: list[str] | str, marker: str | None) -> None:
    assert _needed_marker(command) == marker


@pytest.mark.parametrize(("command", "marker"), [(["no/raylet"], "ray"), (["no/mlflow", "server"], "server")])
def test_a_test_without_the_marker_fails_when_it_starts_one(command: list[str], marker: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"it needs the marker `{marker}`"):
        subprocess.Popen(command)


@pytest.mark.ray
def test_a_test_with_the_marker_may_start_ray() -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.Popen(["no/raylet"])


def test_stages_of_a_test_without_the_marker_are_refused_a_ray() -> None:
    assert os.environ["RAY_ADDRESS"] == "this-test-needs-the-marker-ray"
