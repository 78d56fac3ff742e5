"""Absolute paths and default names for the settings of a stage."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from ast_core.config import DistilConfig, ModelConfig
from ast_core.errors import require
from ast_core.storage.places import is_uri
from ast_core.training.job_rules import require_consistent
from ast_core.weights.hub.hub_address import is_hub_address, parse_hub_address
from pipeline.cli.stages import (
    CheckSettings,
    Common,
    EmbedSettings,
    EvaluateSettings,
    ExportSettings,
    PredictSettings,
    ProbeSettings,
    ReportSettings,
    RunSettings,
    TrainSettings,
)
from pipeline.tracking.model_choice import is_model_address
from pipeline.tracking.store_uri import choose_store


def _default_name(settings: Common) -> str:
    """Return the default name of a run: the recipe's name, with the variant unless it is `published`."""
    return Path(settings.recipe).stem + ("" if settings.variant == "published" else f"_{settings.variant}")


def _resolve_init(init: str) -> str:
    """Return `model.init` as an absolute path or an address; raise UserError now and not in a worker hours later."""
    if is_hub_address(init):
        return str(parse_hub_address(init))
    path = Path(init).expanduser().absolute()
    require(
        path.exists(),
        f"model.init is {init!r}, but {path} does not exist. Set it to scratch, imagenet, hf:ORG/NAME, a file of "
        "weights (.pth, .safetensors) or a folder (a bundle, an epoch of a run, or a Hugging Face checkpoint).",
    )
    return str(path)


def _resolve_teacher(teacher: str) -> str:
    """Return `distil.teacher` as an absolute path or an address; raise UserError if it is neither."""
    if is_model_address(teacher):
        return teacher
    path = Path(teacher).expanduser().absolute()
    require(
        path.is_dir(),
        f"distil.teacher is {teacher!r}, but the folder {path} does not exist. "
        "Set it to a bundle's folder, to models:/NAME@champion or to hf:ORG/NAME.",
    )
    return str(path)


def _require_shared_batch(workers: int, batch_size: int) -> None:
    """Raise UserError if the workers cannot share a batch evenly."""
    fits = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
    require(
        workers in {0, *fits},
        f"optim.batch-size {batch_size} cannot be split over {workers} workers. Set --workers to one of "
        f"{', '.join(map(str, fits))}, or change optim.batch-size.",
    )


def _require_counts(settings: Any) -> None:
    """Raise UserError if a number of things is too low, or the hop of a timeline is no time."""
    for name, least in (("workers", 0), ("bootstrap", 0), ("top_k", 1), ("layer", 1), ("review_clips", 1)):
        value = getattr(settings, name, least)
        require(value is None or value >= least, f"--{name.replace('_', '-')} is {value}; give {least} or more.")
    hop_s = getattr(settings, "hop_s", None)
    require(hop_s is None or 0 < hop_s < math.inf, f"--hop-s is {hop_s}; give a number of seconds above 0.")
    if isinstance(settings, PredictSettings):
        lowest = settings.min_probability
        require(0 <= lowest <= 1, f"--min-probability is {lowest}; give a number from 0 to 1.")
        _require_event_numbers(settings)


def _resolve_place(place: str) -> str:
    """Return a path or glob as an absolute one; a URI, an empty text and the demo's source as they are."""
    if place in {"", "synthetic"} or is_uri(place):
        return place
    return str(Path(place).expanduser().absolute())


def _require_event_numbers(settings: PredictSettings) -> None:
    """Raise UserError if a number of the rule of events is out of its range, which `EventRule` repeats."""
    threshold, release, overlap = settings.event_threshold, settings.event_release, settings.event_overlap
    require(
        threshold is None or 0 < threshold <= 1,
        f"--event-threshold is {threshold}; give a probability above 0 and at most 1.",
    )
    require(0 < release <= 1, f"--event-release is {release}; give a share above 0 and at most 1.")
    require(0 <= overlap < 1, f"--event-overlap is {overlap}; give a share from 0 to below 1.")
    for name in ("event_min_s", "event_gap_s"):
        value = getattr(settings, name)
        require(0 <= value < math.inf, f"--{name.replace('_', '-')} is {value}; give 0 or more seconds.")


def _resolve_sources(settings: Any) -> dict[str, Any]:
    """Return the changes that make the paths of data, teacher and initial weights absolute."""
    changes: dict[str, Any] = {}
    data = getattr(settings, "data", None)
    if isinstance(settings, CheckSettings):
        data = dataclasses.replace(settings.data, source=settings.source)
    if data is not None:
        require("" not in data.root, "data.root has an empty path; give the folder that files or links lead to.")
        roots = tuple(root if is_uri(root) else str(Path(root).expanduser().absolute()) for root in data.root)
        own, names = _resolve_place(data.source), _resolve_place(data.label_names)
        changes["data"] = dataclasses.replace(data, source=own, root=roots, label_names=names)
        if isinstance(settings, CheckSettings):
            changes["source"] = own
    distil = getattr(settings, "distil", None)
    if isinstance(distil, DistilConfig) and distil.teacher:
        changes["distil"] = dataclasses.replace(distil, teacher=_resolve_teacher(distil.teacher))
    if isinstance(settings, ProbeSettings):
        changes["embeddings"] = _resolve_place(settings.embeddings)
    model = getattr(settings, "model", None)
    if isinstance(model, ModelConfig) and model.init not in {"scratch", "imagenet"}:
        changes["model"] = dataclasses.replace(model, init=_resolve_init(model.init))
    return changes


def _resolve_recordings(settings: Any) -> dict[str, Any]:
    """Return the changes that make the inputs and outputs of `predict` and `embed` absolute."""
    if not isinstance(settings, PredictSettings | EmbedSettings):
        return {}
    changes: dict[str, Any] = {"inputs": tuple(_resolve_place(own) for own in settings.inputs)}
    if settings.output:  # a `/` at its end says that it is a folder
        place = _resolve_place(settings.output)
        changes["output"] = place.rstrip("/") + "/" if settings.output.endswith("/") else place
    if isinstance(settings, EmbedSettings):
        require(bool(settings.output), "--output is empty; give a folder's name.")
        return changes
    for name in ("timeline", "events", "attention"):
        path = getattr(settings, name)
        changes[name] = path and path.absolute()
    return changes


def _resolve_corrections(settings: ReportSettings) -> dict[str, Any]:
    """Return the changes that make the paths of corrections absolute; UserError unless they are given together."""
    given = settings.corrections, settings.manifest
    require(
        given.count(None) != 1,
        f"--corrections is {given[0]} and --manifest is {given[1]}; give both, the filled-in CSV file and the name of "
        "the new manifest, or neither.",
    )
    require(
        given[0] is None or not settings.review,
        "--review lists clips, and --corrections takes the list back; give one of them.",
    )
    return {"corrections": given[0] and given[0].absolute(), "manifest": given[1] and given[1].absolute()}


def resolve(settings: Any) -> Any:
    """Return the settings with absolute paths and default names.

    Paths must be absolute because Ray's workers run in another folder.

    Raises:
        UserError: a number is too low, the initial weights or the teacher do not exist, the workers cannot share a
            batch, settings of the training contradict each other, or MLflow cannot keep a registry at the tracking
            address.
    """
    changes: dict[str, Any] = {}
    if isinstance(settings, Common):
        recipe = _default_name(settings)
        run_dir = settings.run_dir if settings.run_dir != Path() else Path("work") / recipe
        changes["run_dir"] = run_dir.absolute()
        changes["shards"] = (settings.shards if settings.shards != Path() else run_dir / "shards").absolute()
        changes["experiment"] = settings.experiment or recipe
        changes["storage"] = settings.storage.rstrip("/")
    if isinstance(settings, TrainSettings | RunSettings):
        _require_shared_batch(settings.workers, settings.optim.batch_size)
        require_consistent(settings.data, settings.model, settings.optim)
    _require_counts(settings)
    if hasattr(settings, "model_name"):
        changes["model_name"] = settings.model_name or f"ast-{_default_name(settings).replace('_', '-')}"
    changes |= _resolve_sources(settings)
    changes |= _resolve_recordings(settings)
    if isinstance(settings, EvaluateSettings):
        changes["clip_list"] = settings.clip_list and settings.clip_list.absolute()
    if isinstance(settings, ReportSettings):
        changes |= _resolve_corrections(settings)
    if isinstance(settings, ExportSettings):
        changes["output"] = settings.output.absolute()
    if not hasattr(settings, "tracking"):
        return dataclasses.replace(settings, **changes)
    changes["tracking"] = choose_store(settings.tracking)
    return dataclasses.replace(settings, **changes)
