"""The ranges of a study, in Ray Tune's form, and the points that Tune draws of them at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain
from ray.tune.search.variant_generator import generate_variants

from ast_core.errors import require

LARGEST = 1e15
"""Largest end of a range; integers up to it are exact as floats, too."""
DRAWS_A_POINT = 1000
"""Number of draws without a new point after which a range is taken to have no other points."""
Value = Any
"""Value of a recipe key: a number, a text, a truth value or a list of them."""


@dataclass(frozen=True)
class Axis:
    """One recipe key, and the values that a study may draw for it."""

    key: str
    """Dotted recipe key, such as `optim.learning_rate`."""
    low: float = 0
    high: float = 0
    """Ends of a range, which belong to it. If both are integers, so are the values."""
    log: bool = False
    """Whether every factor of the value is equally likely, as for a learning rate."""
    choices: tuple[Value, ...] = ()
    """Values without an order; empty for a range."""

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def domain(self) -> Domain:
        """Return the axis in Ray Tune's form; a choice is drawn as its number."""
        domain: Domain
        if self.choices:
            domain = tune.choice(list(range(len(self.choices))))
        elif self.whole:  # Tune's own upper end does not belong to the range
            low, end = int(self.low), int(self.high) + 1
            domain = tune.lograndint(low, end) if self.log else tune.randint(low, end)
        else:
            domain = tune.loguniform(self.low, self.high) if self.log else tune.uniform(self.low, self.high)
        return domain

    def value_of(self, drawn: float) -> Value:
        """Return the recipe's value of a drawn number: floats with four digits, which also name the trial's folder."""
        if self.choices:
            return self.choices[int(drawn)]
        value = int(drawn) if self.whole else float(f"{drawn:.4g}")
        return min(max(value, self.low), self.high)

    def holds(self, drawn: float) -> bool:
        """Return whether this number can have been drawn."""
        if self.choices:
            return drawn in range(len(self.choices))
        return self.low <= drawn <= self.high and (not self.whole or drawn == int(drawn))

    def ends(self) -> tuple[Value, ...]:
        """Return the two ends of the range, or every choice."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True)
class TpeSpace:
    """What Optuna's TPE draws of a study."""

    axes: tuple[Axis, ...]
    samples: int
    """Number of points to draw."""
    startup: int
    """Number of points that TPE draws at random before it learns from the scores."""
    seed: int

    def extremes(self) -> list[dict[str, Value]]:
        """Return the point of all lowest values, and the points that differ from it by another end of one axis."""
        lowest = {axis.key: axis.ends()[0] for axis in self.axes}
        return [lowest, *({**lowest, axis.key: end} for axis in self.axes for end in axis.ends()[1:])]

    def holds(self, drawn: Mapping[str, float]) -> bool:
        """Return whether these numbers can have been drawn."""
        return set(drawn) == {axis.key for axis in self.axes} and all(axis.holds(drawn[axis.key]) for axis in self.axes)

    def point_of(self, drawn: Mapping[str, float]) -> dict[str, Value]:
        """Return the recipe's values of the drawn numbers."""
        return {axis.key: axis.value_of(drawn[axis.key]) for axis in self.axes}


def parse_axes(path: Path, tables: Any, prefix: str = "") -> tuple[Axis, ...]:
    """Check a study's `[range]` and return its axes.

    Args:
        path: file of the study, for errors.
        tables: the table; an axis has `low` or `choices`, every other table holds axes.
        prefix: dotted beginning of the keys.

    Raises:
        UserError: a range is no table, has unknown keys, or has ends without a value between them.
    """
    require(isinstance(tables, Mapping), f"Study {path}: range is {tables!r}; it must be a table of recipe keys.")
    found: list[Axis] = []
    for key, table in tables.items():
        name = f"{prefix}{key}"
        require(
            isinstance(table, Mapping),
            f"Study {path}: range {name} is {table!r}; it must be a table of low, high and, optionally, log, or of "
            "choices.",
        )
        if {"low", "choices"} & set(table):
            found.append(_parse_axis(f"Study {path}: range {name}", name, table))
        else:
            found += parse_axes(path, table, f"{name}.")
    return tuple(found)


def _parse_axis(place: str, key: str, table: Mapping[str, Any]) -> Axis:
    """Check the table of one range; `place` begins the errors."""
    known = {"choices"} if "choices" in table else {"low", "high", "log"}
    wrong = set(table) - known
    require(
        not wrong, f"{place} has the unknown keys {sorted(wrong)}. Use only {', '.join(sorted(known, reverse=True))}."
    )
    if "choices" in table:
        choices = table["choices"]
        require(
            isinstance(choices, list) and bool(choices) and all(map(_is_choice, choices)),
            f"{place} has choices = {choices!r}; give a list of texts, numbers, truth values or lists of them.",
        )
        return Axis(key, choices=tuple(choices))
    low, high, log = table["low"], table.get("high", 0), table.get("log", False)
    require("high" in table, f"{place} has no high; give both ends, low and high.")
    for name, end in (("low", low), ("high", high)):
        require(
            isinstance(end, int | float) and not isinstance(end, bool) and abs(end) <= LARGEST,
            f"{place} has {name} = {end!r}; give a number of at most {LARGEST:g}.",
        )
    require(isinstance(log, bool), f"{place} has log = {log!r}; set it to true or false.")
    require(low < high, f"{place} goes from {low} to {high}; set low below high.")
    require(not log or low > 0, f"{place} is logarithmic and starts at {low}; set low above 0.")
    return Axis(key, low, high, log)


def _is_choice(value: Any) -> bool:
    """Return whether a recipe key can have this value of a TOML file."""
    return all(map(_is_choice, value)) if isinstance(value, list) else isinstance(value, str | int | float | bool)


def draw_random(path: Path, axes: tuple[Axis, ...], count: int, seed: int) -> list[dict[str, Value]]:
    """Return different points that Ray Tune draws of the axes as its `BasicVariantGenerator` does.

    The same study always draws the same points, so a killed search finds its trials again, and with more samples the
    first points stay the same.

    Raises:
        UserError: the axes have fewer different points.
    """
    space = {"config": {axis.key: axis.domain() for axis in axes}}
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Value]] = {}
    repeated = 0
    while len(found) < count and repeated < DRAWS_A_POINT:
        _, drawn = next(generate_variants(space, random_state=rng))
        point = {axis.key: axis.value_of(drawn["config"][axis.key]) for axis in axes}
        repeated = repeated + 1 if repr(point) in found else 0
        found[repr(point)] = point
    require(
        len(found) == count,
        f"Study {path}: samples is {count}, but [range] has only {len(found)} different points. Set samples to "
        f"{len(found)}, or write the values as lists in [grid], which tries all of them.",
    )
    return list(found.values())
