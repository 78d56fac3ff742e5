"""Check that what a stage reads exists, before the stage and its libraries are imported.

The stages check the same again: they are also called from Python, and on other nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ast_core.config import DataConfig, PrepareConfig
from ast_core.errors import require
from ast_core.storage.places import is_pattern, is_uri, matches_files, require_no_keys
from pipeline.cli.listen_settings import MICROPHONE, PIPE, ListenSettings
from pipeline.cli.stages import (
    CalibrateSettings,
    CombineSettings,
    Common,
    EmbedSettings,
    EvaluateSettings,
    ExportSettings,
    PredictSettings,
    ProbeSettings,
    RegisterSettings,
    ReportSettings,
    RunSettings,
    ServeSettings,
    TrainSettings,
)
from pipeline.tracking.model_choice import is_model_address

READ_SHARDS = (TrainSettings, CombineSettings, EvaluateSettings, CalibrateSettings, ReportSettings)
"""Stages that read shards which `prepare` wrote."""


def require_inputs(settings: Any) -> None:
    """Raise UserError if a file or folder that a stage reads does not exist.

    Args:
        settings: settings of any stage, with absolute paths.
    """
    if isinstance(getattr(settings, "prepare", None), PrepareConfig):
        # A study, whose settings are those of `run`, needs no recordings if its shards exist.
        if not (isinstance(settings, RunSettings) and (settings.storage or _has_shards(settings))):
            _require_source(settings.data)
    elif isinstance(settings, READ_SHARDS) and not settings.storage:  # an object store may hold what is not here
        found = _has_shards(settings) or (isinstance(settings, ReportSettings) and _has_probe(settings))
        require(found, f"There are no shards in {settings.shards}; run prepare first, or give --shards.")
    elif isinstance(settings, RegisterSettings) and not settings.storage:
        run = settings.run_dir
        require(run.is_dir(), f"The run folder {run} does not exist; run the stages before, or give --run-dir.")
    takes_model = isinstance(
        settings, PredictSettings | EmbedSettings | ProbeSettings | ExportSettings | ServeSettings | ListenSettings
    )
    if takes_model and not is_model_address(settings.model):
        require(
            Path(settings.model).exists(),
            f"--model {settings.model} does not exist; give a bundle folder, a registry URI such as "
            "models:/NAME@champion, or a model of Hugging Face's hub such as hf:ORG/NAME.",
        )
    if isinstance(settings, PredictSettings):
        require(bool(settings.inputs), "There is nothing to predict; give audio files or folders.")
        _require_event_place(settings)
        _require_recordings(settings.inputs)
    if isinstance(settings, ListenSettings):
        require(
            settings.source in {MICROPHONE, PIPE} or Path(settings.source).is_file(),
            f"{settings.source} is not a file; give one, `{PIPE}` for a pipe, or nothing for the microphone.",
        )
    if isinstance(settings, EmbedSettings):
        require(bool(settings.inputs), "There is nothing to embed; give audio files or folders.")
        _require_embedding_place(settings.output)
        _require_recordings(settings.inputs)


def _require_recordings(inputs: Sequence[str]) -> None:
    """Raise UserError if an input of this machine does not exist; the stage asks stores and matches patterns."""
    for own in inputs:
        found = is_uri(own) or is_pattern(own) or Path(own).exists()
        require(found, f"{own} does not exist; give a file or a folder.")


def _require_embedding_place(output: str) -> None:
    """Raise UserError if the output of `embed` is named as a file is."""
    name = output.partition("?")[0] if is_uri(output) else output
    table = Path(name).suffix in {".parquet", ".csv", ".json", ".npy", ".npz"} and not name.endswith("/")
    require(
        not table or (not is_uri(output) and Path(output).is_dir()),
        f"--output {output} is a file's name, and embeddings are a folder of Parquet files; give a folder's name.",
    )


def _require_event_place(settings: PredictSettings) -> None:
    """Raise UserError if the events cannot be written to their place in their format."""
    place, form = settings.events, settings.event_format
    if place is None:
        require(form == "table", f"--event-format is {form}, but --events is missing; give a folder to write to.")
    elif form == "table":
        require(
            place.suffix in {".csv", ".parquet"} and not place.is_dir(),
            f"--events {place} must be a .csv or .parquet file; for a folder give --event-format audacity or raven.",
        )
    else:
        require(
            place.suffix not in {".csv", ".parquet"} and not place.is_file(),
            f"--events {place} is a file; give a folder, in which --event-format {form} has a file for each recording.",
        )


def _has_shards(settings: Common) -> bool:
    return (settings.shards / "index.json").is_file()  # `ast_core.shards.index.INDEX`, whose module loads pyarrow


def _has_probe(settings: Common) -> bool:
    return (settings.run_dir / "probe" / "probe.json").is_file()  # `RunFolder.probe_result`, whose module loads pyarrow


def _require_source(data: DataConfig) -> None:
    source = data.source
    require(bool(source), "data.source is empty. Set it to the folder of a data set, or to a manifest file.")
    if is_uri(source):
        require_no_keys(source, "data.source")
    else:
        found = source == "synthetic" or (matches_files(source) if is_pattern(source) else Path(source).exists())
        require(found, f"The data set {source} does not exist; give an existing folder or manifest file.")
    require(
        not data.label_names or Path(data.label_names).is_file(),
        f"data.label-names {data.label_names} is not a file; give a file such as class_labels_indices.csv.",
    )
    for root in data.root:
        if is_uri(root):
            require_no_keys(root, "data.root")
            continue
        require(Path(root).is_dir(), f"data.root {root} is not a folder; give an existing folder.")
