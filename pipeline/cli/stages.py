"""TOML recipe and flags to settings: the only import of tyro.

A recipe is rewritten as flags put before the user's, so that one parser checks both and the user's come last and win.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console

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
    require,
    to_dict,
)
from ast_core.errors import ClipError, UserError
from ast_core.redaction import without_secrets
from ast_core.storage.disk_space import FULL
from pipeline.cli import sigterm
from pipeline.cli.recipe_file import as_flags, last_value, nested, recipe_flags

Variant = Literal["published", "paper"]
SettingsT = TypeVar("SettingsT")


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
class FoldsSettings(TrainSettings):
    """Settings of `folds`."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)


@dataclass(frozen=True)
class FeaturesSettings(Common):
    """Settings of `features`."""

    data: DataConfig = field(default_factory=DataConfig)


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


def load_recipe(name_or_path: str, variant: str = "published") -> Recipe:
    """A packaged recipe by name, or a TOML file, checked by the flags' own parser.

    Raises:
        UserError: no such recipe or variant, not TOML. A wrong key or type exits with tyro's suggestion.
    """
    return tyro.cli(Recipe, args=recipe_flags(name_or_path, variant), description=f"Recipe {name_or_path}.")


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with some keys changed, checked by the flags' own parser.

    Args:
        recipe: or settings that hold one.
        changes: values by dotted key, such as `model.freq_stride`.

    Raises:
        UserError: nothing is where `model.init` points. A wrong key or type exits with tyro's suggestion.
    """
    own = {f.name: to_dict(getattr(recipe, f.name)) for f in dataclasses.fields(Recipe)}
    flags = as_flags(own) + [flag for key, value in changes.items() for flag in as_flags(nested(key, value))]
    changed = tyro.cli(Recipe, args=flags, description=f"A recipe with {', '.join(changes) or 'no change'}.")
    return _resolved(changed)  # type: ignore[no-any-return]


def parse(kind: type[SettingsT], description: str | None, argv: Sequence[str] | None = None) -> SettingsT:
    """Settings from a stage's command line; its recipe, if it takes one, gives the defaults.

    Returns:
        Settings with every path absolute, and empty names filled in.

    Raises:
        UserError: the recipe or its variant is missing or not TOML, or there is nothing where `model.init` points.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    if issubclass(kind, Common):
        recipe, variant = last_value(flags, "--recipe", Common.recipe), last_value(flags, "--variant", Common.variant)
        load_recipe(recipe, variant)  # a wrong key is told about even where this stage does not take its section
        flags = recipe_flags(recipe, variant, {f.name for f in dataclasses.fields(kind)}) + flags
    settings: SettingsT = _resolved(tyro.cli(kind, args=flags, description=description))
    return settings


def run_stage(stage: Callable[[], Any]) -> None:
    """Run a stage as a program: a `UserError` becomes one sentence on stderr and exit code 1, SIGTERM exit code 143.

    A bug's traceback is shown as Python does, but without passwords of URIs.
    """
    try:
        with sigterm.obeyed():
            stage()
    except (UserError, ClipError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {_plain(str(error))}")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a bug of ours, or a disk that filled under Ray's or MLflow's own files
        if isinstance(error, OSError) and error.errno in FULL:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {_plain(_full(error))}")
        else:
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)  # noqa: T201 - not wrapped or coloured
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. The same command again goes on from here.")
        sys.exit(sigterm.EXIT_CODE if sigterm.asked() else 130)


def _full(error: OSError) -> str:
    """A full disk that something else than our own files met: Ray's or MLflow's, or a lock's."""
    where = error.filename or "a file of this run, Ray or MLflow"
    free = {folder: shutil.disk_usage(folder).free for folder in (tempfile.gettempdir(), str(Path.cwd()))}
    known = ", ".join(f"{count} bytes are free in {folder}" for folder, count in free.items())
    return f"{where} could not be written: {error.strerror}; {known}. Free space and run the same command again."


def section_values(settings: Common, kind: type[SettingsT]) -> SettingsT:
    """The fields that another stage's settings share with `settings`; the rest keep their defaults."""
    shared = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return kind(**{name: getattr(settings, name) for name in shared})


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


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


def _resolved(settings: Any) -> Any:
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
