"""The paper's studies as data, and a user's own from a TOML file.

A study is a list of variants; a variant is what it changes of a recipe. Published numbers are those of Gong, Chung,
Glass, Interspeech 2021: tables 2 to 6 and section 3.1, and of the authors' logs for the single strides.
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
"""What the published numbers were measured on."""


@dataclass(frozen=True)
class Variant:
    """One row of a study's table."""

    name: str
    """Also its folder's name."""
    changes: Mapping[str, Any]
    """Recipe keys, as `model.freq_stride`, and their values."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Results by data set."""
    repeats: int | None = None
    """Seeds, where not as many as the study is asked for."""


@dataclass(frozen=True)
class Study:
    """A question, and the variants that answer it."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    early_stopping: EarlyStopping = "none"
    """`asha` stops a trial whose score after 1, 2, 4, ... epochs is in the lower half."""
    note: str = ""
    """What a reader of the table must know."""


def _published(balanced: float | None = None, full: float | None = None) -> dict[str, float]:
    return {key: value for key, value in ((BALANCED, balanced), (FULL, full)) if value is not None}


def _patches(freq: int, time: int, freq_stride: int, time_stride: int) -> dict[str, Any]:
    return {
        "model.patch_freq": freq, "model.patch_time": time,
        "model.freq_stride": freq_stride, "model.time_stride": time_stride,
    }  # fmt: skip


def _apart(freq: int, time: int, init: str) -> dict[str, Any]:
    """Patches without overlap."""
    return {**_patches(freq, time, freq, time), "model.init": init}


def _squares(stride: int) -> dict[str, Any]:
    """The paper's 16 x 16."""
    return _patches(16, 16, stride, stride)


PAPER_STUDIES = {
    "overlap": Study(
        "overlap",
        "Patch overlap",
        tuple(
            Variant(f"overlap-{overlap}", _squares(16 - overlap), _published(balanced, full))
            for overlap, balanced, full in ((0, 0.336, 0.451), (2, 0.342, 0.456), (4, 0.344, 0.455), (6, 0.347, 0.459))
        ),
    ),
    "patch": Study(
        "patch",
        "Patch shape and size, without overlap",
        (
            Variant("128x2-scratch", _apart(128, 2, "scratch"), _published(0.154)),
            Variant("16x16-scratch", _apart(16, 16, "scratch"), _published(0.143)),
            Variant("32x32-scratch", _apart(32, 32, "scratch"), _published(0.139)),
            Variant("16x16-imagenet", _apart(16, 16, "imagenet"), _published(0.336)),
        ),
    ),
    "positions": Study(
        "positions",
        "Adaptation of the positional embedding",
        (
            Variant("reinitialised", {"model.positions": "reinitialised"}, _published(0.305)),
            Variant("nearest", {"model.positions": "nearest"}, _published(0.346)),
            Variant("bilinear", {"model.positions": "bilinear"}, _published(0.347)),
        ),
        note="It says something only where the first weights are of another grid.",
    ),
    "pretraining": Study(
        "pretraining",
        "ImageNet pretraining",
        (
            Variant("none", {"model.init": "scratch"}, _published(0.148, 0.366)),
            Variant("vit-base", {"model.backbone": "vit_base_patch16_384"}, _published(0.320)),
            Variant("vit-large", {"model.backbone": "vit_large_patch16_384"}, _published(0.330)),
            Variant("deit", {"model.backbone": "deit_base_patch16_384"}, _published(0.330)),
            Variant("deit-distilled", {"model.backbone": "deit_base_distilled_patch16_384"}, _published(0.347, 0.459)),
        ),
    ),
    "full": Study(
        "full",
        "Balanced against full training set",
        (
            Variant(
                "balanced", {"data.train_splits": ["balanced_train"], "optim.sampler": "shuffle"}, _published(0.347)
            ),
            Variant(
                "full",
                {"data.train_splits": ["balanced_train", "unbalanced_train"], "optim.sampler": "balanced"},
                _published(full=0.459),
            ),
        ),
        note="Epochs and rates are the recipe's for both; the paper's own are in audioset_balanced and audioset_full.",
    ),
    "ensemble": Study(
        "ensemble",
        "Members of Ensemble-S and Ensemble-M",
        (
            Variant("base", _squares(10), {FULL: 0.4484}),
            Variant("stride-12", _squares(12), {FULL: 0.4467}, repeats=1),
            Variant("stride-14", _squares(14), {FULL: 0.4431}, repeats=1),
            Variant("stride-16", _squares(16), {FULL: 0.4422}, repeats=1),
        ),
        note="Published members are last epochs, three seeds of stride 10 and one of each other stride.",
    ),
}
"""Studies by name."""


def load_study(name_or_path: str) -> Study:
    """A study of the paper by name, or a user's own from a TOML file.

    Raises:
        UserError: no such study, or a file that is none, naming the key.
    """
    if name_or_path in PAPER_STUDIES:
        return PAPER_STUDIES[name_or_path]
    path = Path(name_or_path)
    require(path.is_file(), f"No study {name_or_path!r}. Give a TOML file, or one of: {', '.join(PAPER_STUDIES)}.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, and a number of 5,000 digits, are ValueErrors, too
        raise UserError(f"Study {path} is not TOML: {error}.") from None
    return _own(path, values)


def _own(path: Path, values: dict[str, Any]) -> Study:
    known = {"title", "note", "variants", "grid", "range", "samples", "sampler", "seed", "early_stopping"}
    require(
        set(values) <= known, f"Study {path} has the keys {sorted(set(values) - known)}; known are {sorted(known)}."
    )
    stopping, sampler = values.get("early_stopping", "none"), values.get("sampler", "random")
    require(stopping in get_args(EarlyStopping), f"Study {path}: early_stopping is none or asha, not {stopping!r}.")
    require(sampler in get_args(Sampler), f"Study {path}: sampler is random or sobol, not {sampler!r}.")
    variants = [_variant(path, name, changes) for name, changes in values.get("variants", {}).items()]
    points = _grid(flat(values.get("grid", {})))
    if "range" in values:
        count = values.get("samples", 0)
        require(isinstance(count, int) and count >= 1, f"Study {path}: a range needs samples = N, how many to draw.")
        points = [
            {**point, **drawn}
            for drawn in _draws(path, _ranges(values["range"]), count, sampler, values.get("seed", 0))
            for point in points
        ]
    variants += [Variant(_name(point), point) for point in points if point]
    require(len(variants) >= 1, f"Study {path} has nothing to try: give [variants.NAME], [grid] or [range].")
    names = [variant.name for variant in variants]
    require(len(set(names)) == len(names), f"Study {path} has the same variant twice among {', '.join(names)}.")
    require(all(_is_folder(name) for name in names), f"Study {path}: a variant's name must do as a folder's: {names}.")
    return Study(path.stem, values.get("title", path.stem), tuple(variants), stopping, values.get("note", ""))


def _variant(path: Path, name: str, table: Mapping[str, Any]) -> Variant:
    require(isinstance(table, Mapping), f"Study {path}: variants.{name} must be a table of recipe keys.")
    repeats = table.get("repeats")
    require(
        repeats is None or (isinstance(repeats, int) and repeats >= 1),
        f"Study {path}: variants.{name}.repeats is {repeats!r}; give 1 or more.",
    )
    return Variant(name, flat({key: value for key, value in table.items() if key != "repeats"}), repeats=repeats)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _grid(axes: dict[str, Any]) -> list[dict[str, Any]]:
    for key, values in axes.items():
        require(isinstance(values, list) and bool(values), f"grid {key} must be a list of values, not {values!r}.")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _ranges(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Tables that have a `low`, by dotted key."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, table in tables.items():
        require(isinstance(table, Mapping), f"range {prefix}{key} must be a table of low, high and, if you like, log.")
        found |= {f"{prefix}{key}": table} if "low" in table else _ranges(table, f"{prefix}{key}.")
    return found


def _draws(
    path: Path, ranges: dict[str, Mapping[str, Any]], count: int, sampler: Sampler, seed: int
) -> list[dict[str, Any]]:
    """Points of the ranges; the same study draws the same ones, so a killed search finds its trials again."""
    for key, table in ranges.items():
        wrong = set(table) - {"low", "high", "log"}
        require(not wrong, f"Study {path}: range {key} has {sorted(wrong)}; known are low, high and log.")
        low, high = table["low"], table.get("high", table["low"])
        require(low < high, f"Study {path}: range {key} goes from {low} to {high}; give a low below a high.")
        require(not table.get("log") or low > 0, f"Study {path}: range {key} is logarithmic from {low}; start above 0.")
    rng = np.random.default_rng(seed)
    unit_SK = (
        rng.random((count, len(ranges)))
        if sampler == "random"
        else qmc.Sobol(len(ranges), rng=rng).random_base2(max(0, (count - 1).bit_length()))[:count]
    )
    return [{key: _between(table, u) for (key, table), u in zip(ranges.items(), row, strict=True)} for row in unit_SK]


def _between(table: Mapping[str, Any], share: float) -> Any:
    low, high = table["low"], table["high"]
    value = float(low * (high / low) ** share) if table.get("log") else float(low + (high - low) * share)
    return round(value) if isinstance(low, int) and isinstance(high, int) else float(f"{value:.4g}")


def _name(point: Mapping[str, Any]) -> str:
    """`learning_rate=0.001,epochs=5`: the keys' last parts say enough for a folder."""
    return ",".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in point.items())


def _short(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return Path(text).name if "/" in text else text


def _is_folder(name: str) -> bool:
    return bool(name) and "/" not in name and name not in {".", ".."} and len(name) <= 200
