"""Settings from a TOML recipe and the flags of a command line; only this module calls the parser."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from ast_core.config import Recipe
from ast_core.serialization import to_dict
from pipeline.cli.help_texts import show_help
from pipeline.cli.recipe_file import join_repeated, last_flag_value, nest_key, recipe_flags, to_flags
from pipeline.cli.resolve import resolve
from pipeline.cli.stages import CheckSettings, Common
from pipeline.tracking.store_uri import resolve_store

SettingsT = TypeVar("SettingsT")
HELP_FLAGS = frozenset({"-h", "--help"})


def load_recipe(name_or_path: str, variant: str = "published") -> Recipe:
    """Load a packaged recipe by name, or a TOML file, and check it with the parser of the flags.

    Raises:
        UserError: the recipe or variant does not exist, or the file is not TOML.
        SystemExit: a key or type is wrong; tyro prints a suggestion.
    """
    return tyro.cli(Recipe, args=recipe_flags(name_or_path, variant), description=f"Recipe {name_or_path}.")


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some keys changed, checked by the parser of the flags.

    Args:
        recipe: recipe, or settings with its sections.
        changes: values by dotted key, such as `model.freq_stride`.

    Raises:
        UserError: the path in `model.init` does not exist.
        SystemExit: a key or type is wrong; tyro prints a suggestion.
    """
    own = {f.name: to_dict(getattr(recipe, f.name)) for f in dataclasses.fields(Recipe)}
    flags = to_flags(own) + [flag for key, value in changes.items() for flag in to_flags(nest_key(key, value))]
    changed = tyro.cli(Recipe, args=flags, description=f"A recipe with {', '.join(changes) or 'no change'}.")
    return resolve(changed)  # type: ignore[no-any-return]


def parse_settings(
    kind: type[SettingsT], description: str | None, argv: Sequence[str] | None = None, program: str | None = None
) -> SettingsT:
    """Parse a stage's command line; if the stage takes a recipe, the recipe sets the defaults.

    Args:
        kind: class of the stage's settings.
        description: text of `--help`.
        argv: flags; None for those of this process.
        program: name of the program in `--help`; None for the file that runs.

    Returns:
        Settings with every path absolute, and empty names filled in.

    Raises:
        UserError: the recipe or its variant does not exist or is not TOML, the path in `model.init` does not exist, or
            `--tracking` is empty or no address of a store.
        SystemExit: a flag, key or type is wrong; tyro prints a suggestion.
    """
    flags = join_repeated(sys.argv[1:] if argv is None else argv, "--data.root")
    if issubclass(kind, Common | CheckSettings):
        recipe, variant = (
            last_flag_value(flags, "--recipe", kind.recipe),
            last_flag_value(flags, "--variant", kind.variant),
        )
        load_recipe(recipe, variant)  # reports a wrong key even in a section that this stage does not take
        flags = recipe_flags(recipe, variant, _sections(kind)) + flags
    if last_flag_value(flags, "--tracking", "not given") == "":  # an unset variable in a script, not a wish for sqlite
        resolve_store("")
    with show_help(kind) if HELP_FLAGS.intersection(flags) else contextlib.nullcontext():
        settings: SettingsT = resolve(tyro.cli(kind, prog=program, args=flags, description=description))
    return settings


def _sections(kind: type[Any]) -> set[str]:
    """Return the sections of a recipe that a stage takes; the `model` of `probe` is a path, not that section."""
    return {f.name for f in dataclasses.fields(kind) if f.default_factory is not dataclasses.MISSING}


def select_settings(settings: Common, kind: type[SettingsT]) -> SettingsT:
    """Return settings of another stage: shared fields come from `settings`, the others keep their defaults."""
    shared = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return kind(**{name: getattr(settings, name) for name in shared})
