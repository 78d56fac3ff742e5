"""The paper's studies as data, and studies that users write as TOML files.

A study is a list of variants; a variant is a set of changes to a recipe. The published numbers come from Gong, Chung,
Glass, Interspeech 2021 (tables 2 to 6 and section 3.1); those of single strides come from the authors' logs.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ast_core.errors import UserError, require
from tune.study_space import TpeSpace, Value, draw_random, parse_axes

Sampler = Literal["random", "tpe"]
EarlyStopping = Literal["none", "asha"]
RANDOM, TPE, TPE_STARTUP = "random", "tpe", "tpe at random"
"""Values of `Variant.sampler`. TPE draws its first points at random."""
STARTUP = 10
"""Number of TPE's random points if the study does not say it: Optuna's own number."""
MOST_SEED = 2**32 - 1
"""Largest seed that Optuna takes."""
BALANCED, FULL = "AudioSet balanced, mAP", "AudioSet full, mAP"
"""Data sets and metric of the published numbers."""


@dataclass(frozen=True)
class Variant:
    """One row of a study's table."""

    name: str
    """Name of the variant and of its folder."""
    changes: Mapping[str, Any]
    """New values by dotted recipe key, such as `model.freq_stride`."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Published results by data set."""
    repeats: int | None = None
    """Number of seeds; None for the study's own number."""
    sampler: str = ""
    """Sampler that drew the values; empty if the study names them."""


@dataclass(frozen=True)
class Study:
    """A question, and the variants that answer it."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    early_stopping: EarlyStopping = "none"
    """Rule that ends trials; `asha` stops a trial whose score after 1, 2, 4, ... epochs is in the lower half."""
    note: str = ""
    """Remark under the table."""
    tpe: TpeSpace | None = None
    """Space of further variants, which TPE draws while the study runs; None for a study without it."""

    def extremes(self) -> list[Mapping[str, Any]]:
        """Return the changes of each named variant, and those at the ends of TPE's ranges."""
        named = [variant.changes for variant in self.variants]
        return [*named, *self.tpe.extremes()] if self.tpe is not None else named


def _select_published(balanced: float | None = None, full: float | None = None) -> dict[str, float]:
    """Return the published results that exist."""
    return {key: value for key, value in ((BALANCED, balanced), (FULL, full)) if value is not None}


def _set_patches(freq: int, time: int, freq_stride: int, time_stride: int) -> dict[str, Any]:
    """Return the changes that set the patch shape and the strides."""
    return {
        "model.patch_freq": freq, "model.patch_time": time,
        "model.freq_stride": freq_stride, "model.time_stride": time_stride,
    }  # fmt: skip


def _set_separate_patches(freq: int, time: int, init: str) -> dict[str, Any]:
    """Return the changes for patches without overlap."""
    return {**_set_patches(freq, time, freq, time), "model.init": init}


def _set_square_patches(stride: int) -> dict[str, Any]:
    """Return the changes for the paper's 16 x 16 patches at this stride."""
    return _set_patches(16, 16, stride, stride)


PAPER_STUDIES = {
    "overlap": Study(
        "overlap",
        "Patch overlap",
        tuple(
            Variant(f"overlap-{overlap}", _set_square_patches(16 - overlap), _select_published(balanced, full))
            for overlap, balanced, full in ((0, 0.336, 0.451), (2, 0.342, 0.456), (4, 0.344, 0.455), (6, 0.347, 0.459))
        ),
    ),
    "patch": Study(
        "patch",
        "Patch shape and size, without overlap",
        (
            Variant("128x2-scratch", _set_separate_patches(128, 2, "scratch"), _select_published(0.154)),
            Variant("16x16-scratch", _set_separate_patches(16, 16, "scratch"), _select_published(0.143)),
            Variant("32x32-scratch", _set_separate_patches(32, 32, "scratch"), _select_published(0.139)),
            Variant("16x16-imagenet", _set_separate_patches(16, 16, "imagenet"), _select_published(0.336)),
        ),
    ),
    "positions": Study(
        "positions",
        "Adaptation of the positional embedding",
        (
            Variant("reinitialised", {"model.positions": "reinitialised"}, _select_published(0.305)),
            Variant("nearest", {"model.positions": "nearest"}, _select_published(0.346)),
            Variant("bilinear", {"model.positions": "bilinear"}, _select_published(0.347)),
        ),
        note="The variants differ only if the initial weights come from another patch grid.",
    ),
    "pretraining": Study(
        "pretraining",
        "ImageNet pretraining",
        (
            Variant("none", {"model.init": "scratch"}, _select_published(0.148, 0.366)),
            Variant("vit-base", {"model.backbone": "vit_base_patch16_384"}, _select_published(0.320)),
            Variant("vit-large", {"model.backbone": "vit_large_patch16_384"}, _select_published(0.330)),
            Variant("deit", {"model.backbone": "deit_base_patch16_384"}, _select_published(0.330)),
            Variant(
                "deit-distilled", {"model.backbone": "deit_base_distilled_patch16_384"}, _select_published(0.347, 0.459)
            ),
        ),
    ),
    "full": Study(
        "full",
        "Balanced against full training set",
        (
            Variant(
                "balanced",
                {"data.train_splits": ["balanced_train"], "optim.sampler": "shuffle"},
                _select_published(0.347),
            ),
            Variant(
                "full",
                {"data.train_splits": ["balanced_train", "unbalanced_train"], "optim.sampler": "balanced"},
                _select_published(full=0.459),
            ),
        ),
        note="Epochs and rates are the recipe's for both; the paper's own are in audioset_balanced and audioset_full.",
    ),
    "ensemble": Study(
        "ensemble",
        "Members of Ensemble-S and Ensemble-M",
        (
            Variant("base", _set_square_patches(10), {FULL: 0.4484}),
            Variant("stride-12", _set_square_patches(12), {FULL: 0.4467}, repeats=1),
            Variant("stride-14", _set_square_patches(14), {FULL: 0.4431}, repeats=1),
            Variant("stride-16", _set_square_patches(16), {FULL: 0.4422}, repeats=1),
        ),
        note="Published members are last epochs, three seeds of stride 10 and one of each other stride.",
    ),
}
"""The paper's studies by name."""


def load_study(name_or_path: str) -> Study:
    """Return a study of the paper by name, or read one from a TOML file.

    Raises:
        UserError: the study does not exist, or the file is not a study; the message names the key.
    """
    if name_or_path in PAPER_STUDIES:
        return PAPER_STUDIES[name_or_path]
    path = Path(name_or_path)
    require(
        path.is_file(),
        f"Study {name_or_path!r} does not exist. Give a TOML file or one of: {', '.join(PAPER_STUDIES)}.",
    )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError also for text that is not UTF-8 and a number of 5,000 digits
        raise UserError(f"Study {path} is not TOML: {error}.") from None
    return _parse_study(path, values)


def _parse_study(path: Path, values: dict[str, Any]) -> Study:
    """Check a study's table and return the study; UserError names a wrong key."""
    known = {"title", "note", "variants", "grid", "range", "samples", "sampler", "startup", "seed", "early_stopping"}
    require(
        set(values) <= known,
        f"Study {path} has the unknown keys {sorted(set(values) - known)}. Use only {sorted(known)}.",
    )
    for name in {"variants", "grid"} & set(values):
        require(isinstance(values[name], dict), f"Study {path}: {name} is {values[name]!r}; it must be a table.")
    stopping = values.get("early_stopping", "none")
    require(
        stopping in get_args(EarlyStopping), f"Study {path}: early_stopping is {stopping!r}; set it to none or asha."
    )
    sampler = _parse_sampler(path, values)
    variants = [_parse_variant(path, name, changes) for name, changes in values.get("variants", {}).items()]
    points = _cross_axes(path, flatten(values.get("grid", {})))
    drawn_by, tpe = "", None
    if "range" in values and sampler == TPE:
        tpe = _parse_tpe(path, values)
    elif "range" in values:
        drawn_by = RANDOM
        axes = parse_axes(path, values["range"])
        drawn = draw_random(path, axes, _count_samples(path, values), _parse_seed(path, values)) if axes else []
        points = [{**point, **own} for own in drawn for point in points]
    variants += [Variant(name_point(point), point, sampler=drawn_by) for point in points if point]
    require(bool(variants) or tpe is not None, f"Study {path} has no variants. Add [variants.NAME], [grid] or [range].")
    _check_names(path, [variant.name for variant in variants])
    title, note = str(values.get("title", path.stem)), str(values.get("note", ""))
    return Study(path.stem, title, tuple(variants), stopping, note, tpe)


def _parse_sampler(path: Path, values: Mapping[str, Any]) -> Sampler:
    """Check the sampler's name and the keys that only TPE has."""
    sampler = values.get("sampler", RANDOM)
    require(
        sampler != "sobol",
        f'Study {path}: the sampler "sobol" was removed. Write sampler = "random", or sampler = "tpe" to draw near the '
        "best points so far.",
    )
    require(sampler in get_args(Sampler), f"Study {path}: sampler is {sampler!r}; set it to random or tpe.")
    require(
        sampler == TPE or "startup" not in values,
        f'Study {path}: startup is for sampler = "tpe" only. Remove it, or set the sampler.',
    )
    return sampler  # type: ignore[no-any-return]


def _parse_tpe(path: Path, values: Mapping[str, Any]) -> TpeSpace:
    """Check the keys of a study that TPE draws."""
    require(
        not values.get("grid"),
        f'Study {path}: sampler = "tpe" draws single points, which [grid] would multiply. Write the lists of [grid] in '
        "[range], as in time_stride = {choices = [8, 4]}.",
    )
    axes = parse_axes(path, values["range"])
    require(bool(axes), f"Study {path}: [range] is empty. Add a recipe key with low and high, or with choices.")
    for axis in axes:
        require(
            not axis.key.startswith("front_end."),
            f'Study {path}: sampler = "tpe" cannot draw {axis.key}, because each value needs shards of its own. Use '
            'sampler = "random" or [grid].',
        )
    samples, startup = _count_samples(path, values), values.get("startup", STARTUP)
    require(_is_whole(startup) and startup >= 1, f"Study {path}: startup is {startup!r}; set it to 1 or more.")
    require(
        samples > startup,
        f"Study {path}: samples is {samples}, but TPE draws the first {startup} points at random. Set samples above "
        f"{startup}, or startup below {samples}.",
    )
    return TpeSpace(axes, samples, startup, _parse_seed(path, values))


def _count_samples(path: Path, values: Mapping[str, Any]) -> int:
    """Return the number of points to draw."""
    count = values.get("samples", 0)
    require(
        _is_whole(count) and count >= 1,
        f"Study {path}: samples is {count!r}; a study with [range] needs samples = N, the points to draw.",
    )
    return int(count)


def _parse_seed(path: Path, values: Mapping[str, Any]) -> int:
    """Return the seed of the draws."""
    seed = values.get("seed", 0)
    require(_is_whole(seed) and 0 <= seed <= MOST_SEED, f"Study {path}: seed is {seed!r}; set it to 0 to {MOST_SEED}.")
    return int(seed)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_names(path: Path, names: list[str]) -> None:
    """Raise UserError if a variant's name is no folder name, or if two variants have the same."""
    require(
        len(set(names)) == len(names),
        f"Study {path} has a variant twice: {', '.join(names)}. Give each variant its own name.",
    )
    wrong = [name for name in names if not is_folder_name(name)]
    require(
        not wrong, f"Study {path}: the variants {wrong} cannot be folder names. Use 1 to 200 characters without '/'."
    )


def _parse_variant(path: Path, name: str, table: Mapping[str, Any]) -> Variant:
    """Check a variant's table and return the variant."""
    require(
        isinstance(table, Mapping), f"Study {path}: variants.{name} is {table!r}; it must be a table of recipe keys."
    )
    repeats = table.get("repeats")
    require(
        repeats is None or (_is_whole(repeats) and repeats >= 1),
        f"Study {path}: variants.{name}.repeats is {repeats!r}; set it to 1 or more.",
    )
    return Variant(name, flatten({key: value for key, value in table.items() if key != "repeats"}), repeats=repeats)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _cross_axes(path: Path, axes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of the axes' values."""
    for key, values in axes.items():
        require(
            isinstance(values, list) and bool(values),
            f"Study {path}: grid {key} is {values!r}; it must be a list of one or more values.",
        )
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def name_point(point: Mapping[str, Value]) -> str:
    """Return a variant name such as `learning_rate=0.001,epochs=5`, made of the last parts of the keys."""
    return ",".join(f"{key.rpartition('.')[2]}={_shorten(value)}" for key, value in point.items())


def _shorten(value: Any) -> str:
    """Return a value as a part of a folder name; a path becomes its last part."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return Path(text).name if "/" in text else text


def is_folder_name(name: str) -> bool:
    """Return whether a folder can have this name."""
    return bool(name) and "/" not in name and name not in {".", ".."} and len(name) <= 200
