"""Turn a TOML recipe and the flags of a command line into settings: the only use of the parser."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from ast_core.config import (
    Recipe,
)
from ast_core.serialization import to_dict
from pipeline.cli.recipe_file import last_flag_value, nest_key, recipe_flags, to_flags
from pipeline.cli.resolve import resolve
from pipeline.cli.stages import Common

SettingsT = TypeVar("SettingsT")


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
    flags = to_flags(own) + [flag for key, value in changes.items() for flag in to_flags(nest_key(key, value))]
    changed = tyro.cli(Recipe, args=flags, description=f"A recipe with {', '.join(changes) or 'no change'}.")
    return resolve(changed)  # type: ignore[no-any-return]


def parse_settings(kind: type[SettingsT], description: str | None, argv: Sequence[str] | None = None) -> SettingsT:
    """Settings from a stage's command line; its recipe, if it takes one, gives the defaults.

    Returns:
        Settings with every path absolute, and empty names filled in.

    Raises:
        UserError: the recipe or its variant is missing or not TOML, or there is nothing where `model.init` points.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    if issubclass(kind, Common):
        recipe, variant = (
            last_flag_value(flags, "--recipe", Common.recipe),
            last_flag_value(flags, "--variant", Common.variant),
        )
        load_recipe(recipe, variant)  # a wrong key is told about even where this stage does not take its section
        flags = recipe_flags(recipe, variant, {f.name for f in dataclasses.fields(kind)}) + flags
    settings: SettingsT = resolve(tyro.cli(kind, args=flags, description=description))
    return settings


def select_settings(settings: Common, kind: type[SettingsT]) -> SettingsT:
    """The fields that another stage's settings share with `settings`; the rest keep their defaults."""
    shared = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return kind(**{name: getattr(settings, name) for name in shared})
