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

import numpy as np
from scipy.stats import qmc

from ast_core.errors import UserError, require

Sampler = Literal["random", "sobol"]
EarlyStopping = Literal["none", "asha"]
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
    known = {"title", "note", "variants", "grid", "range", "samples", "sampler", "seed", "early_stopping"}
    require(
        set(values) <= known,
        f"Study {path} has the unknown keys {sorted(set(values) - known)}. Use only {sorted(known)}.",
    )
    stopping, sampler = values.get("early_stopping", "none"), values.get("sampler", "random")
    require(
        stopping in get_args(EarlyStopping), f"Study {path}: early_stopping is {stopping!r}; set it to none or asha."
    )
    require(sampler in get_args(Sampler), f"Study {path}: sampler is {sampler!r}; set it to random or sobol.")
    variants = [_parse_variant(path, name, changes) for name, changes in values.get("variants", {}).items()]
    points = _cross_axes(path, flatten(values.get("grid", {})))
    if "range" in values:
        count = values.get("samples", 0)
        require(
            isinstance(count, int) and count >= 1,
            f"Study {path}: samples is {count!r}; a study with [range] needs samples = N, the points to draw.",
        )
        points = [
            {**point, **drawn}
            for drawn in _draw_points(
                path, _collect_ranges(path, values["range"]), count, sampler, values.get("seed", 0)
            )
            for point in points
        ]
    variants += [Variant(_name_point(point), point) for point in points if point]
    require(len(variants) >= 1, f"Study {path} has no variants. Add [variants.NAME], [grid] or [range].")
    names = [variant.name for variant in variants]
    require(
        len(set(names)) == len(names),
        f"Study {path} has a variant twice: {', '.join(names)}. Give each variant its own name.",
    )
    wrong = [name for name in names if not _is_folder_name(name)]
    require(
        not wrong, f"Study {path}: the variants {wrong} cannot be folder names. Use 1 to 200 characters without '/'."
    )
    return Study(path.stem, values.get("title", path.stem), tuple(variants), stopping, values.get("note", ""))


def _parse_variant(path: Path, name: str, table: Mapping[str, Any]) -> Variant:
    """Check a variant's table and return the variant."""
    require(
        isinstance(table, Mapping), f"Study {path}: variants.{name} is {table!r}; it must be a table of recipe keys."
    )
    repeats = table.get("repeats")
    require(
        repeats is None or (isinstance(repeats, int) and repeats >= 1),
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


def _collect_ranges(path: Path, tables: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Return the tables that have a `low`, by dotted key."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, table in tables.items():
        require(
            isinstance(table, Mapping),
            f"Study {path}: range {prefix}{key} is {table!r}; it must be a table of low, high and, optionally, log.",
        )
        found |= {f"{prefix}{key}": table} if "low" in table else _collect_ranges(path, table, f"{prefix}{key}.")
    return found


def _draw_points(
    path: Path, ranges: dict[str, Mapping[str, Any]], count: int, sampler: Sampler, seed: int
) -> list[dict[str, Any]]:
    """Draw points of the ranges.

    The same study always draws the same points, so a killed search finds its trials again.
    """
    for key, table in ranges.items():
        wrong = set(table) - {"low", "high", "log"}
        require(
            not wrong, f"Study {path}: range {key} has the unknown keys {sorted(wrong)}. Use only low, high and log."
        )
        low, high = table["low"], table.get("high", table["low"])
        require(low < high, f"Study {path}: range {key} goes from {low} to {high}; set low below high.")
        require(
            not table.get("log") or low > 0,
            f"Study {path}: range {key} is logarithmic and starts at {low}; set low above 0.",
        )
    rng = np.random.default_rng(seed)
    unit_SK = (
        rng.random((count, len(ranges)))
        if sampler == "random"
        else qmc.Sobol(len(ranges), rng=rng).random_base2(max(0, (count - 1).bit_length()))[:count]
    )
    return [{key: _scale(table, u) for (key, table), u in zip(ranges.items(), row, strict=True)} for row in unit_SK]


def _scale(table: Mapping[str, Any], share: float) -> Any:
    """Return the value at a share, from 0 to 1, of a range; an integer if both its ends are integers."""
    low, high = table["low"], table["high"]
    value = float(low * (high / low) ** share) if table.get("log") else float(low + (high - low) * share)
    return round(value) if isinstance(low, int) and isinstance(high, int) else float(f"{value:.4g}")


def _name_point(point: Mapping[str, Any]) -> str:
    """Return a variant name such as `learning_rate=0.001,epochs=5`, made of the last parts of the keys."""
    return ",".join(f"{key.rpartition('.')[2]}={_shorten(value)}" for key, value in point.items())


def _shorten(value: Any) -> str:
    """Return a value as a part of a folder name; a path becomes its last part."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return Path(text).name if "/" in text else text


def _is_folder_name(name: str) -> bool:
    """Return whether a folder can have this name."""
    return bool(name) and "/" not in name and name not in {".", ".."} and len(name) <= 200
