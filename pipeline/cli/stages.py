"""TOML recipe and flags to settings: the only import of tyro.

A recipe is rewritten as flags put before the user's, so that one parser checks both and the user's come last and win.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ast_core.config import (
    AugmentConfig,
    DataConfig,
    DistilConfig,
    EnsembleConfig,
    FrontEndConfig,
    ModelConfig,
    OptimConfig,
    PrepareConfig,
    Recipe,
)

Variant = Literal["published", "paper"]


def _filled(default: str) -> Any:
    """For the help text: what an empty value stands for."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Common:
    """What every stage takes."""

    recipe: str = "audioset_full"
    """Recipe: a name of pipeline/recipes (demo, own, esc50, ...) or a TOML file. Flags override its keys."""
    variant: Variant = "published"
    """Where the paper's text and its published code differ: `published` is what made the checkpoints and the logs, and
    what a result can be compared with; `paper` takes the recipe's [paper] tables on top."""
    run_dir: Annotated[Path, _filled("work/RECIPE")] = Path()
    """Folder of this run's results. The same folder again resumes."""
    shards: Annotated[Path, _filled("RUN_DIR/shards")] = Path()
    """Folder of the Parquet shards."""
    storage: Annotated[str, _filled("none: every node sees the same disk")] = ""
    """Object store that keeps the run: s3://bucket/prefix, or another URI that pyarrow knows. The run's folder is then
    each node's own working copy of it."""
    workers: Annotated[int, _filled("one a GPU, or one a core where there is no GPU")] = 0
    """Worker processes."""
    address: Annotated[str, _filled("RAY_ADDRESS, else one is started on this machine")] = ""
    """Ray cluster to join, as `auto` or `ray://host:port`."""
    tracking: Annotated[str, _filled("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI."""
    experiment: Annotated[str, _filled("the recipe's name")] = ""
    """MLflow experiment."""


@dataclass(frozen=True)
class PrepareSettings(Common):
    """Settings of `prepare`."""

    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)


@dataclass(frozen=True)
class TrainSettings(Common):
    """Settings of `train`."""

    seed: int = 0
    """Seed of this member: order, augmentation, initial weights."""
    accept_other_data: bool = False
    """Go on with a run though its shards hold other data, of as many training clips: a clip was mended, say."""
    parent_run: str = ""
    """MLflow run that this training is shown under."""
    data: DataConfig = field(default_factory=DataConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)


@dataclass(frozen=True)
class CombineSettings(Common):
    """Settings of `combine`."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)


@dataclass(frozen=True)
class EvaluateSettings(Common):
    """Settings of `evaluate`."""

    bootstrap: int = 0
    """Resamples of the clips for 95 % intervals; 1000 are usual, 0 for none."""
    clip_list: Path | None = None
    """Test on these clips only: ids a line, a CSV whose first column they are, or a segments file of AudioSet's."""
    data: DataConfig = field(default_factory=DataConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)


@dataclass(frozen=True)
class CalibrateSettings(Common):
    """Settings of `calibrate`."""

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class ReportSettings(Common):
    """Settings of `report`."""

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class RegisterSettings(Common):
    """Settings of `register`."""

    model_name: Annotated[str, _filled("ast-RECIPE")] = ""
    """Name in the registry. Members are NAME-seed-0 and so on."""
    force: bool = False
    """Make it the champion, whatever it scored and on what."""


@dataclass(frozen=True)
class RunSettings(Common, Recipe):
    """Settings of `run`: the whole recipe."""

    model_name: Annotated[str, _filled("ast-RECIPE")] = ""
    """Name in the registry."""
    accept_other_data: bool = False
    """Go on with a run though its shards hold other data, of as many training clips: a clip was mended, say."""


@dataclass(frozen=True)
class CrossValidateSettings(TrainSettings):
    """Settings of `folds`."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)


@dataclass(frozen=True)
class PredictSettings:
    """Settings of `predict`."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Audio files, or folders that are searched for them."""
    model: str = "models:/ast-demo@champion"
    """A registry URI, or a bundle folder such as work/demo/bundles/ensemble."""
    top_k: int = 5
    """Labels shown a file."""
    decide: bool = False
    """Give the labels that a recording has, by the thresholds that `calibrate` stored in the model, and calibrated
    probabilities."""
    output: Path | None = None
    """Also write all probabilities to this .csv, .json or .parquet file."""
    timeline: Path | None = None
    """Also write each file's probabilities over time to this folder, as CSV and as a picture."""
    hop_s: float = 1.0
    """Seconds between the timeline's windows, each as long as a training clip."""
    attention: Path | None = None
    """Also write to this folder what each file's first window made the first member look at, as a picture."""
    tracking: Annotated[str, _filled("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI of the registry."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `export`."""

    output: Annotated[Path, tyro.conf.Positional]
    """Folder (huggingface) or file (onnx) to write."""
    model: str = "models:/ast-demo@champion"
    """A registry URI, or a bundle folder such as work/demo/bundles/seed-0."""
    format: Literal["huggingface", "onnx"] = "huggingface"
    """`huggingface` (one member) for transformers, or `onnx` with the front end inside (any bundle)."""
    tracking: Annotated[str, _filled("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI of the registry."""
