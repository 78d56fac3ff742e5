"""A TOML recipe and its variant, rewritten as flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_core.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_flags(name_or_path: str, variant: str, sections: set[str] | None = None) -> list[str]:
    """A recipe as flags, its variant's after its own; only these sections if they are given.

    Raises:
        UserError: no such recipe or variant, or not TOML.
    """
    values = _recipe_values(name_or_path)
    variants = {"published": {}, "paper": values.pop("paper", None)}
    changes = variants.get(variant)
    if changes is None:
        have = ", ".join(name for name, table in variants.items() if table is not None)
        raise UserError(f"Recipe {name_or_path!r} has no variant {variant!r}. Give one of: {have}.")
    both = (
        {key: value for key, value in part.items() if not sections or key in sections} for part in (values, changes)
    )
    return [flag for part in both for flag in to_flags(part)]


def last_flag_value(flags: Sequence[str], name: str, default: str) -> str:
    """The last value of a flag, before the full parse that needs it."""
    found = default
    for position, flag in enumerate(flags):
        if flag == name and position + 1 < len(flags):
            found = flags[position + 1]
        elif flag.startswith(f"{name}="):
            found = flag.partition("=")[2]
    return found


def _recipe_values(name_or_path: str) -> dict[str, Any]:
    packaged = RECIPES / f"{name_or_path}.toml"
    path = packaged if packaged.is_file() else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise UserError(f"No recipe {name_or_path!r}. Give a TOML file, or one of: {names}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, and a number of 5,000 digits, are ValueErrors, too
        raise UserError(f"Recipe {path} is not TOML: {error}.") from None


def nest_key(key: str, value: Any) -> dict[str, Any]:
    """A dotted key as tables: `model.freq_stride` is inside `model`."""
    head, _, rest = key.partition(".")
    return {head: nest_key(rest, value) if rest else value}


def to_flags(values: Mapping[str, Any], prefix: str = "--") -> list[str]:
    """Nested tables as flags; keys whose value is None, which TOML does not have, are left out."""
    flags: list[str] = []
    for key, value in values.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, Mapping):
            flags += to_flags(value, name + ".")
        elif isinstance(value, bool):
            head, _, last = name.rpartition(".")
            flags.append(name if value else f"{head}.no-{last}")
        elif isinstance(value, list):
            flags += [name, *(str(item) for item in value)]
        elif value is not None:
            flags += [name, str(value)]
    return flags
