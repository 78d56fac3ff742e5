"""The application of Ray Serve's configuration files."""

from __future__ import annotations

import pytest

from ast_core.errors import UserError
from pipeline.serving.serve_deployment import complete_options
from pipeline.serving.serve_options import ServeOptions


def test_a_replica_without_a_tracking_address_uses_that_of_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.ast:5000")
    assert complete_options(ServeOptions("models:/m@champion")).tracking == "http://mlflow.ast:5000"
    given = ServeOptions("models:/m@champion", tracking="http://other:5000")
    assert complete_options(given) == given


def test_a_wrong_address_of_the_pod_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is 'mlruns'"):
        complete_options(ServeOptions("models:/m@champion"))
