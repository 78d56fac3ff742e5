"""Settings of every stage; the attributes' docstrings are the texts of `--help`.

A recipe is rewritten as flags that precede the user's flags. One parser checks both, and the user's flags win.
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
from pipeline.cli.gpu_choice import Gpus

Variant = Literal["published", "paper"]


def _show_default(default: str) -> Any:
    """Return the part of the help text that says what an empty value stands for."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Common:
    """Settings that every stage takes."""

    recipe: str = "audioset_full"
    """Recipe to use: a name (demo, own, esc50, ...) or a TOML file. Flags override its keys."""
    variant: Variant = "published"
    """Choice where the paper's text and its published code differ. `published` follows the code, which made the
    published checkpoints and logs; compare results with this one. `paper` adds the recipe's [paper] tables."""
    run_dir: Annotated[Path, _show_default("work/RECIPE")] = Path()
    """Folder of this run's results. To resume a run, give the same folder again."""
    shards: Annotated[Path, _show_default("RUN_DIR/shards")] = Path()
    """Folder of the Parquet shards."""
    storage: Annotated[str, _show_default("none: every node sees the same disk")] = ""
    """Object store of the run: s3://bucket/prefix, or another URI that pyarrow supports. The run's folder is then the
    working copy on each node."""
    workers: Annotated[int, _show_default("one a GPU, or one a core on a machine without GPUs")] = 0
    """Number of worker processes."""
    address: Annotated[str, _show_default("RAY_ADDRESS, else a new one on this machine")] = ""
    """Ray cluster to join: `auto` or `ray://host:port`."""
    tracking: Annotated[str, _show_default("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI."""
    experiment: Annotated[str, _show_default("the recipe's name")] = ""
    """Name of the MLflow experiment."""


@dataclass(frozen=True)
class GpuCommon(Common):
    """Settings that every stage takes which can use GPUs."""

    gpus: Gpus = "auto"
    """Use of GPUs. `auto` uses those of the nodes that are alive, else CPUs. `yes` asks Ray for GPUs even if no node
    that is alive has one, so that an autoscaler starts one. `no` uses CPUs."""


@dataclass(frozen=True)
class PrepareSettings(Common):
    """Settings of `prepare`."""

    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)


@dataclass(frozen=True)
class CheckSettings:
    """Settings of `check`."""

    source: Annotated[str, tyro.conf.Positional]
    """Folder of the data set, a manifest file, or Parquet files or tar archives with the recordings, also as a URI."""
    recipe: str = "own"
    """Recipe whose splits and front end to check with: a name (own, esc50, ...) or a TOML file."""
    variant: Variant = "published"
    """Choice where the paper's text and its published code differ, as for the other stages."""
    workers: Annotated[int, _show_default("one a core")] = 0
    """Number of decoders that run at the same time."""
    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)


@dataclass(frozen=True)
class TrainSettings(GpuCommon):
    """Settings of `train`."""

    seed: int = 0
    """Seed of this member's clip order, augmentation and initial weights."""
    accept_other_data: bool = False
    """Permission to resume a run although its shards hold other data with the same number of training clips, for
    example after a clip was fixed."""
    parent_run: str = ""
    """MLflow run that becomes the parent of this training's run."""
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
class EvaluateSettings(GpuCommon):
    """Settings of `evaluate`."""

    bootstrap: int = 0
    """Number of bootstrap resamples of the clips for 95 % intervals; 1000 is usual, 0 computes no intervals."""
    clip_list: Path | None = None
    """File of the only clips to test on: one id a line, a CSV file with ids in the first column, or an AudioSet
    segments file."""
    data: DataConfig = field(default_factory=DataConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)


@dataclass(frozen=True)
class CalibrateSettings(GpuCommon):
    """Settings of `calibrate`."""

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class ReportSettings(GpuCommon):
    """Settings of `report`."""

    players: bool = True
    """Switch of the players: the sound of the shown clips is part of the page, unless you give --no-players."""
    review: bool = False
    """Switch that also lists the clips whose labels look wrong, in RUN_DIR/review/clips.csv and in the page. It embeds
    the clips of the training, validation and test splits."""
    review_clips: int = 50
    """Largest number of clips that the review lists."""
    review_model: Annotated[str, _show_default("the run's own")] = ""
    """Model whose embeddings the review compares: a registry URI, hf:ORG/NAME, or a bundle folder. Training clips are
    judged best by a model that was not trained on their labels."""
    review_member: Annotated[str, _show_default("the only one; of the run's own ensemble, the first")] = ""
    """Member of an ensemble whose embeddings the review compares."""
    corrections: Path | None = None
    """CSV file with corrected labels: review/clips.csv, filled in. With it, only --manifest is written."""
    manifest: Path | None = None
    """New CSV file for the data set with the corrections, for --data.source of prepare. The data set is not changed."""
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class RegisterSettings(Common):
    """Settings of `register`."""

    model_name: Annotated[str, _show_default("ast-RECIPE")] = ""
    """Name of the model in the registry. Members are registered as NAME-seed-0 and so on."""
    force: bool = False
    """Promotion to champion whatever the score and the test data, even if the test split lacks classes."""


@dataclass(frozen=True)
class RunSettings(GpuCommon, Recipe):
    """Settings of `run`: those of every stage and all sections of the recipe."""

    model_name: Annotated[str, _show_default("ast-RECIPE")] = ""
    """Name of the model in the registry."""
    accept_other_data: bool = False
    """Permission to resume a run although its shards hold other data with the same number of training clips, for
    example after a clip was fixed."""


@dataclass(frozen=True)
class CrossValidateSettings(TrainSettings):
    """Settings of `cross_validate`."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)


@dataclass(frozen=True)
class ProbeSettings(GpuCommon):
    """Settings of `probe`."""

    recipe: str = "own"
    """Recipe whose splits and limits to use: a name (own, esc50, ...) or a TOML file. Flags override its keys. Its
    front end and model are not used: those of --model count."""
    model: str = "models:/ast-demo@champion"
    """Model whose embeddings the probe learns from: a registry URI, or a bundle folder such as
    work/demo/bundles/seed-0."""
    member: str = ""
    """Member of an ensemble whose embeddings to use, such as `seed-0`; leave it empty for a model of one member."""
    target_frames: Annotated[int | None, _show_default("the model's own")] = None
    """Frames of a window, for clips that are much shorter than the model's own windows. The model's positions are
    adapted to it, as at the beginning of a training."""
    embeddings: Annotated[str, _show_default("RUN_DIR/embeddings")] = ""
    """Folder or URI of this data set's stored embeddings. Clips without a row there are embedded first."""
    loss: Literal["auto", "cross_entropy", "bce"] = "auto"
    """Kind of the probe: `cross_entropy` for one label a clip, `bce` for several. `auto` is `cross_entropy` if every
    clip has exactly one label."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """Weight of the clips in the fit: `balanced` makes classes with few clips count as much as those with many; with
    several labels, the clips with a class count as much as those without it."""
    cross_validate: bool = False
    """Switch that also holds each split of the data set out once, as on ESC-50's folds."""
    bootstrap: int = 1000
    """Number of bootstrap resamples of the clips for 95 % intervals; 0 computes no intervals."""
    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)


@dataclass(frozen=True)
class PredictSettings:
    """Settings of `predict`."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Recordings: files, folders to search, patterns such as 'clips/**/*.flac', URIs such as s3://bucket/folder, and
    Parquet files and tar archives with recordings inside."""
    model: str = "models:/ast-demo@champion"
    """Model to use: a registry URI, a bundle folder such as work/demo/bundles/ensemble, or a model of Hugging Face's
    hub, hf:ORG/NAME."""
    top_k: int = 5
    """Number of labels of each recording."""
    min_probability: float = 0.0
    """Lowest probability of a label."""
    decide: bool = False
    """Decision for each label, made with the thresholds that `calibrate` stored in the model; probabilities are
    calibrated."""
    output: str | None = None
    """File (.csv, .json or .parquet) to write all probabilities to, or a folder or URI for a data set of Parquet files.
    A run with the same folder predicts only recordings that have no row yet. No class name can replace a column: CSV
    has `p:` in front of each class."""
    workers: Annotated[int, _show_default("none for a few recordings, else one a GPU or one a core")] = 0
    """Number of worker processes on Ray."""
    address: Annotated[str, _show_default("RAY_ADDRESS, else a new one on this machine")] = ""
    """Ray cluster to join: `auto` or `ray://host:port`."""
    timeline: Path | None = None
    """Folder to write each file's probabilities over time to, as CSV and as a picture; in this process."""
    hop_s: Annotated[float | None, _show_default("1, or a window if that is shorter")] = None
    """Seconds between the starts of the windows of timelines and events. Each window is as long as a training clip."""
    events: Path | None = None
    """Place to write the sounds of each recording to, with their beginnings and ends: a .csv or .parquet file of all
    recordings, or with another format a folder with a file for each recording."""
    event_format: Literal["table", "audacity", "raven"] = "table"
    """Format of the events: a `table`, label tracks of `audacity`, or selection tables of `raven`."""
    event_threshold: Annotated[float | None, _show_default("those that `calibrate` stored in the model, else 0.5")] = (
        None
    )
    """Probability at which an event of any class begins."""
    event_release: float = 0.5
    """Share of the threshold below which an event ends."""
    event_min_s: float = 0.0
    """Shortest event in seconds."""
    event_gap_s: float = 0.0
    """Two events of a class with a shorter gap between them are one, in seconds."""
    event_overlap: float = 0.0
    """Share of a window that a sound fills when its probability reaches the threshold; larger for a model that reports
    events late and short."""
    attention: Path | None = None
    """Folder to write a picture to of the first member's attention over each file's first window."""
    gpus: Gpus = "auto"
    """Use of GPUs, of this machine or of the workers' nodes: `auto` if torch finds any, `yes` or an error, `no` for
    CPUs."""
    tracking: Annotated[str, _show_default("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI of the registry."""


@dataclass(frozen=True)
class EmbedSettings:
    """Settings of `embed`."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Recordings: files, folders to search, patterns such as 'clips/**/*.flac', URIs such as s3://bucket/folder, and
    Parquet files and tar archives with recordings inside."""
    output: str
    """Folder or URI to write a data set of Parquet files to. A run with the same folder embeds only recordings that
    have no row yet."""
    model: str = "models:/ast-demo@champion"
    """Model to use: a registry URI, or a bundle folder such as work/demo/bundles/seed-0."""
    member: Annotated[str | None, _show_default("the only one")] = None
    """Member of an ensemble, such as seed-0; each has embeddings of its own."""
    layer: Annotated[int | None, _show_default("the last one")] = None
    """Block of the transformer whose output is used, counted from 1. The final norm is applied to it."""
    target_frames: Annotated[int | None, _show_default("the model's own")] = None
    """Frames of a window, for clips that are much shorter than the model's own windows. The model's positions are
    adapted to it, as at the beginning of a training."""
    frames: bool = False
    """Embeddings over time, one row for each patch in time, in place of one row a recording."""
    workers: Annotated[int, _show_default("none for a few recordings, else one a GPU or one a core")] = 0
    """Number of worker processes on Ray."""
    address: Annotated[str, _show_default("RAY_ADDRESS, else a new one on this machine")] = ""
    """Ray cluster to join: `auto` or `ray://host:port`."""
    gpus: Gpus = "auto"
    """Use of GPUs, of this machine or of the workers' nodes: `auto` if torch finds any, `yes` or an error, `no` for
    CPUs."""
    tracking: Annotated[str, _show_default("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI of the registry."""


@dataclass(frozen=True)
class ServeSettings:
    """Settings of `serve`."""

    model: str = "models:/ast-demo@champion"
    """Model to serve: a registry URI, a bundle folder such as work/demo/bundles/ensemble, or a model of Hugging Face's
    hub, hf:ORG/NAME. With an alias such as @champion, a new version is taken over while the server runs."""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for all networks."""
    port: int = 8000
    """Port to listen on; 0 for a free one."""
    tokens: Annotated[Path | None, _show_default("none; requests need no token")] = None
    """File with the clients' tokens, which only you may read: lines NAME TOKEN [LIMIT], where LIMIT is the number of
    concurrent requests (default 16)."""
    cors: tuple[str, ...] = ()
    """Origins of other web pages that may use the server, such as https://example.org."""
    replicas: tuple[int, int] = (1, 1)
    """Lowest and highest number of copies of the model; between them it follows the load."""
    gpus: Gpus = "auto"
    """Use of GPUs, one a replica: `auto` if the nodes have any, `yes` or an error, `no` for CPUs."""
    threads: Annotated[int, _show_default("cores / highest number of replicas")] = 0
    """Threads of each replica on CPUs."""
    max_request_mib: float = 64
    """Largest request in MiB; larger ones get HTTP 413."""
    max_seconds: float = 3600
    """Longest recording in seconds; longer ones get HTTP 422."""
    max_waiting: int = 256
    """Requests that a replica holds at the same time; more get HTTP 503 with Retry-After."""
    drain_s: float = 30
    """Seconds to answer the requests that run when SIGTERM comes; new ones get HTTP 503 meanwhile."""
    refresh_s: float = 15
    """Seconds between two looks at the registry for a new version of the model's alias."""
    address: Annotated[str, _show_default("RAY_ADDRESS, else a new one on this machine")] = ""
    """Ray cluster to join: `auto` or `ray://host:port`."""
    tracking: Annotated[str, _show_default("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI of the registry."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `export`."""

    output: Annotated[Path, tyro.conf.Positional]
    """Folder (huggingface) or file (onnx) to write to."""
    model: str = "models:/ast-demo@champion"
    """Model to export: a registry URI, a bundle folder such as work/demo/bundles/seed-0, or a model of Hugging Face's
    hub, hf:ORG/NAME."""
    format: Literal["huggingface", "onnx"] = "huggingface"
    """Format to write: `huggingface` for transformers (one member only), or `onnx` with the front end included (any
    bundle)."""
    embeddings: bool = False
    """Further outputs of the ONNX graph: the embeddings of the clip and of each patch in time, of each member."""
    tracking: Annotated[str, _show_default("MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db")] = field(
        default="", repr=False
    )
    """MLflow tracking URI of the registry."""
