"""MLflow's model registry: versions that hold bundles, their descriptions and aliases.

Each function raises `UserError` if the registry cannot be reached or refuses the call.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.tracking import mlflow_environment  # noqa: F401  # before mlflow, which reads it

# isort: split
import mlflow
import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Schema
from sqlalchemy.exc import SQLAlchemyError

from ast_core.errors import UserError, require
from ast_core.evaluation.prediction_table import ERROR, LABELS, PROBABILITIES
from ast_core.weights.bundle import DESCRIPTION
from pipeline.tracking import mlflow_store
from pipeline.tracking.serving_requests import AUDIO, RATE, WAVEFORM

CHAMPION, CHALLENGER = "champion", "challenger"
"""The aliases of the best version so far, which users load by default, and of the newest version."""
REQUIREMENTS = (
    "mlflow", "numpy", "pandas", "pyarrow", "safetensors", "soundfile", "soxr", "timm", "torch", "torchaudio",
)  # fmt: skip
"""The packages that a registered model needs, in the versions installed when it is registered."""
DECODERS = ("av",)
"""Packages that a registered model uses to decode more formats; those installed when it is registered."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    number: int
    tags: Mapping[str, str]


def find_version(name: str, bundle_digest: str, decisions_digest: str) -> int | None:
    """Return the newest version of a model that holds this bundle with these decisions, or None."""
    with _report_errors(f"{name} could not be looked up"):
        found = MlflowClient().search_model_versions(f"name = '{name}' and tags.bundle_digest = '{bundle_digest}'")
        own = [int(v.version) for v in found if v.tags.get("decisions_digest", "") == decisions_digest]
        return max(own, default=None)


def version_of_alias(name: str, alias: str) -> Version | None:
    """Return the version that an alias points at, or None if the alias does not exist."""
    with _report_errors(f"{name} could not be looked up"):
        try:
            version = MlflowClient().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise
        return Version(int(version.version), version.tags)


def list_versions(name: str) -> dict[int, tuple[str, ...]]:
    """Return the aliases of each version of a model, by its number, the newest first."""
    with _report_errors(f"{name} could not be looked up"):
        client = MlflowClient()
        aliases = client.get_registered_model(name).aliases
        numbers = sorted((int(own.version) for own in client.search_model_versions(f"name = '{name}'")), reverse=True)
        return {
            number: tuple(sorted(alias for alias, version in aliases.items() if int(version) == number))
            for number in numbers
        }


def add_version(
    name: str, bundle: Path, run_id: str, example: pd.DataFrame,
    metrics: Mapping[str, float], tags: Mapping[str, str],
) -> int:  # fmt: skip
    """Upload a bundle as a pyfunc model, then register it. Nothing is pickled: the bundle's files are copied.

    Args:
        name: name in the registry; the model is created if it does not exist.
        bundle: folder of the bundle.
        run_id: active run that the model belongs to.
        example: example of an input.
        metrics: metrics shown next to the model.
        tags: tags of the version.

    Returns:
        The number of the version. The registry shows nothing before the upload is complete.

    Raises:
        UserError: the registry cannot be reached or written.
    """
    packages = [Path(__file__).resolve().parents[2] / package for package in ("ast_core", "pipeline")]
    with _report_errors(f"{name} could not be registered"):
        model = mlflow.pyfunc.log_model(
            name=re.sub(r"[/:.%\"']", "-", name),  # MLflow forbids these, and learning_rate=0.001 has one
            loader_module="pipeline.tracking.pyfunc",
            data_path=str(bundle),
            code_paths=[str(package) for package in packages],
            signature=serving_signature(),
            input_example=example,
            pip_requirements=list_requirements(),
            metadata=dict(tags),
        )
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        mlflow.log_metrics(finite, run_id=run_id, model_id=model.model_id)
        version: ModelVersion = mlflow.register_model(model.model_uri, name, tags=dict(tags))
        return int(version.version)


def list_requirements() -> list[str]:
    """Return the packages that a model needs on a server, with their installed versions."""
    extra = [package for package in DECODERS if importlib.util.find_spec(package)]
    return [f"{package}=={importlib.metadata.version(package)}" for package in (*REQUIREMENTS, *extra)]


def describe_version(name: str, version: int, description: str) -> None:
    """Set the description of a version and of its model; raise UserError if the registry refuses it."""
    with _report_errors(f"{name} could not be described"):
        MlflowClient().update_model_version(name, str(version), description)
        MlflowClient().update_registered_model(name, description)


def has_files(name: str, version: int) -> bool:
    """Return whether a version still has the files of its model; raise UserError if their store does not answer."""
    with _report_errors(f"the files of {name} version {version} could not be listed"):
        try:
            return bool(mlflow.artifacts.list_artifacts(artifact_uri=f"models:/{name}/{version}"))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise


def set_alias(name: str, alias: str, version: int) -> None:
    """Point an alias at a version; raise UserError if the registry refuses it."""
    with _report_errors(f"the alias {alias} could not be set"):
        MlflowClient().set_registered_model_alias(name, alias, str(version))


def bundle_folder(model: str, store: str) -> Path:
    """Return the folder of a bundle; download it from `store` if it is a registered model on another machine.

    Args:
        model: a folder, `models:/NAME@champion`, `models:/NAME/3` or `runs:/ID/NAME`.
        store: MLflow tracking URI.

    Raises:
        UserError: the model does not exist, or does not hold exactly one bundle.
    """
    if not model.startswith(("models:/", "runs:/")):
        return Path(model).absolute()
    mlflow_store.open_store(store)
    return fetch_bundle(model)


@contextlib.contextmanager
def open_bundle(uri: str, store: str) -> Iterator[Path]:
    """Yield the folder of a registered bundle while the context is open; what had to be downloaded is then removed.

    Args:
        uri: `models:/NAME@champion`, `models:/NAME/3` or `runs:/ID/NAME`.
        store: MLflow tracking URI.

    Raises:
        UserError: the model does not exist, or does not hold exactly one bundle.
    """
    mlflow_store.open_store(store)
    with tempfile.TemporaryDirectory(prefix="ast-model-") as scratch:
        with _report_errors(f"{uri} could not be fetched"):
            repository = get_artifact_repository(uri)
            while isinstance(repository, ModelsArtifactRepository):
                repository = repository.repo
        is_here = isinstance(repository, LocalArtifactRepository)  # a copy would only cost time and space
        yield fetch_bundle(uri, None if is_here else scratch)


def fetch_bundle(uri: str, to: str | None = None) -> Path:
    """Download a model from the store that is open, and return the folder of its bundle.

    Args:
        uri: address of the model.
        to: folder to download to; None for a model's own folder on this machine, else for a new temporary folder.
    """
    with _report_errors(f"{uri} could not be fetched"):
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=to))
    found = sorted(folder.glob(f"**/{DESCRIPTION}"))
    require(
        len(found) == 1,
        f"{uri} is not a model of this pipeline: it has {len(found)} bundles in {folder}, not 1. Use a model that "
        "`register` made.",
    )
    return found[0].parent


def serving_signature() -> ModelSignature:
    """Return the signature of a served model. The types of the inputs are `any`, see `serving_requests`."""
    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in (AUDIO, WAVEFORM, RATE)])
    outputs = Schema(
        [
            ColSpec(DataType.string, ERROR),
            ColSpec(Array(DataType.string), LABELS, required=False),
            ColSpec(Map(DataType.double), PROBABILITIES, required=False),
        ]
    )
    return ModelSignature(inputs=inputs, outputs=outputs)


@contextlib.contextmanager
def _report_errors(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        where = mlflow.get_tracking_uri()
        raise UserError(f"MLflow at {where}: {what}: {mlflow_store.first_line(error)}.") from error
