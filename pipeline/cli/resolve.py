"""Complete the settings of a stage: absolute paths, and names in place of empty ones."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from ast_core.config import (
    DistilConfig,
    ModelConfig,
)
from ast_core.errors import require
from pipeline.cli.stages import Common, EvaluateSettings, ExportSettings, PredictSettings, RunSettings, TrainSettings


def _name(settings: Common) -> str:
    """What a run is called if nothing else was said."""
    return Path(settings.recipe).stem + ("" if settings.variant == "published" else f"_{settings.variant}")


def _existing(init: str) -> str:
    """Said before anything is prepared, not by a worker hours later."""
    path = Path(init).expanduser().absolute()
    require(
        path.exists(),
        f"model.init: there is no {path}. Give --model.init scratch, imagenet, a file of weights (.pth, .safetensors), "
        "or a folder: a bundle, an epoch of a run, or Hugging Face's format.",
    )
    return str(path)


def _existing_teacher(teacher: str) -> str:
    path = Path(teacher).expanduser().absolute()
    require(path.is_dir(), f"distil.teacher: there is no {path}. Give a bundle's folder or models:/NAME@champion.")
    return str(path)


def _require_shared_batch(workers: int, batch_size: int) -> None:
    """Said before anything is prepared, too."""
    fits = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
    require(
        workers in {0, *fits},
        f"--workers {workers} cannot share optim.batch-size {batch_size} evenly; give {', '.join(map(str, fits))}, "
        "or another batch.",
    )


def _sources(settings: Any) -> dict[str, Any]:
    """Data, teacher and first weights by absolute paths."""
    changes: dict[str, Any] = {}
    data = getattr(settings, "data", None)
    if data is not None and data.source and data.source != "synthetic":
        changes["data"] = dataclasses.replace(data, source=str(Path(data.source).expanduser().absolute()))
    distil = getattr(settings, "distil", None)
    if isinstance(distil, DistilConfig) and distil.teacher and not distil.teacher.startswith(("models:/", "runs:/")):
        changes["distil"] = dataclasses.replace(distil, teacher=_existing_teacher(distil.teacher))
    model = getattr(settings, "model", None)
    if isinstance(model, ModelConfig) and model.init not in {"scratch", "imagenet"}:
        changes["model"] = dataclasses.replace(model, init=_existing(model.init))
    return changes


def resolve(settings: Any) -> Any:
    """Absolute paths and names in place of empty ones: Ray changes its workers' folder."""
    changes: dict[str, Any] = {}
    if isinstance(settings, Common):
        recipe = _name(settings)
        run_dir = settings.run_dir if settings.run_dir != Path() else Path("work") / recipe
        changes["run_dir"] = run_dir.absolute()
        changes["shards"] = (settings.shards if settings.shards != Path() else run_dir / "shards").absolute()
        changes["experiment"] = settings.experiment or recipe
        changes["storage"] = settings.storage.rstrip("/")
    if isinstance(settings, TrainSettings | RunSettings):
        _require_shared_batch(settings.workers, settings.optim.batch_size)
    if hasattr(settings, "model_name"):
        changes["model_name"] = settings.model_name or f"ast-{_name(settings).replace('_', '-')}"
    changes |= _sources(settings)
    if isinstance(settings, PredictSettings):
        changes["inputs"] = tuple(path.absolute() for path in settings.inputs)
        for name in ("output", "timeline", "attention"):
            path = getattr(settings, name)
            changes[name] = path and path.absolute()
    if isinstance(settings, EvaluateSettings):
        changes["clip_list"] = settings.clip_list and settings.clip_list.absolute()
    if isinstance(settings, ExportSettings):
        changes["output"] = settings.output.absolute()
    if not hasattr(settings, "tracking"):
        return dataclasses.replace(settings, **changes)
    store = settings.tracking or os.environ.get("MLFLOW_TRACKING_URI", "")
    changes["tracking"] = store or f"sqlite:///{Path('work/mlflow.db').absolute()}"
    return dataclasses.replace(settings, **changes)
