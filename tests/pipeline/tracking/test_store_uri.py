"""Addresses of tracking stores: the right forms pass, all others are refused with the form that was probably meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ast_core.errors import UserError
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import (
    CalibrateSettings,
    CombineSettings,
    CrossValidateSettings,
    EmbedSettings,
    EvaluateSettings,
    ExportSettings,
    PredictSettings,
    PrepareSettings,
    RegisterSettings,
    ReportSettings,
    RunSettings,
    TrainSettings,
)
from pipeline.tracking.mlflow_store import open_store
from pipeline.tracking.store_uri import resolve_store
from tune.settings import EnsembleSettings, SearchSettings

DEFAULT = "sqlite:///work/mlflow.db or http://localhost:5000"
WRONG = {
    "mlruns": "sqlite:///mlruns/mlflow.db or http://localhost:5000",
    "./mlruns": "sqlite:///mlruns/mlflow.db or http://localhost:5000",
    "file:./mlruns": "sqlite:///mlruns/mlflow.db or http://localhost:5000",
    "file:///data/mlruns": "sqlite:////data/mlruns/mlflow.db or http://localhost:5000",
    "/data/runs.db": "sqlite:////data/runs.db or http://localhost:5000",
    "localhost:5000": "http://localhost:5000",
    "127.0.0.1:5000/": "http://127.0.0.1:5000",
    "mlflow.example.com:8080": "http://mlflow.example.com:8080",
    "http:localhost:5000": "http://localhost:5000",
    "https:/mlflow.example.com:8080": "https://mlflow.example.com:8080",
    "http//x": DEFAULT,
    "https://": DEFAULT,
    "http://host:port": DEFAULT,
    "http://localhost:5000/#/experiments/1": "http://localhost:5000",
    "http://user:hidden-word@host:5000/#/models": "http://host:5000",
    "user@localhost:5000": "http://localhost:5000",
    "user:hidden-word@localhost:5000": "http://localhost:5000",
    "http:user:hidden-word@host:5000": "http://host:5000",
    "http://user:hidden-word/@host:5000": "http://host:5000",
    "postgresql://user:hidden-word#1@host/db": "postgresql://USER@HOST/DATABASE",
    "sqlite://x.db": "sqlite:///x.db or http://localhost:5000",
    "sqlite:x.db": "sqlite:///x.db or http://localhost:5000",
    "sqlite+pysqlite:///x.db": "sqlite:///x.db or http://localhost:5000",
    "sqlite:///": DEFAULT,
    "sqlite:///:memory:": DEFAULT,
    "databricks": DEFAULT,
    "s3://bucket/mlruns": DEFAULT,
    "C:\\mlruns": DEFAULT,
    "": DEFAULT,
    " ": DEFAULT,
    "postgres://user@host/db": "postgresql://USER@HOST/DATABASE",
    "postgresql://host": "postgresql://USER@HOST/DATABASE",
}
RIGHT = (
    "sqlite:////data/a folder/mlflow.db",
    "http://mlflow:5000",
    "HTTP://mlflow:5000/",
    "https://user:word@mlflow.example.com/path",
    "http://[::1]:5000",
    "postgresql://user:word@host:5432/db",
    "postgresql+psycopg2:///db",
    "mysql+pymysql://host/db",
    "mssql+pyodbc:///?odbc_connect=DSN",
    "mssql+pyodbc://user:word@name_of_a_source",
)
SETTINGS = (
    CalibrateSettings, CombineSettings, CrossValidateSettings, EmbedSettings, EnsembleSettings, EvaluateSettings,
    ExportSettings, PredictSettings, PrepareSettings, RegisterSettings, ReportSettings, RunSettings, SearchSettings,
    TrainSettings,
)  # fmt: skip


@pytest.mark.parametrize(("uri", "meant"), WRONG.items())
def test_other_addresses_are_refused_with_the_right_form(uri: str, meant: str) -> None:
    for check in (resolve_store, open_store):
        with pytest.raises(UserError) as raised:
            check(uri)
        assert str(raised.value).endswith(f"; use {meant}.")
        assert "hidden-word" not in str(raised.value)


@pytest.mark.parametrize("uri", RIGHT)
def test_stores_with_a_registry_are_kept(uri: str) -> None:
    assert resolve_store(uri) == uri


def test_a_folder_is_no_sqlite_file(tmp_path: Path) -> None:
    for uri in (f"sqlite:///{tmp_path}", str(tmp_path)):
        with pytest.raises(UserError, match=f"use sqlite:///{tmp_path}/mlflow.db"):
            resolve_store(uri)


def test_a_relative_sqlite_file_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_store("sqlite:///mlruns/mlflow.db") == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_stage_refuses_a_wrong_address_when_it_parses_its_flags(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = {EmbedSettings: "clip.wav --output out"}
    flags = {PredictSettings: "clip.wav", ExportSettings: "out", SearchSettings: "--study overlap", **embed}.get(
        kind, ""
    )
    for wrong in ("mlruns", ""):
        with pytest.raises(UserError, match=f"--tracking is '{wrong}'"):
            parse_settings(kind, "", [*shlex.split(flags), "--tracking", wrong])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is 'localhost:5000'"):
        parse_settings(kind, "", shlex.split(flags))
