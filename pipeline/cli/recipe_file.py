"""Recipes from TOML files, rewritten as flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_core.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_flags(name_or_path: str, variant: str, sections: set[str] | None = None) -> list[str]:
    """Return a recipe as flags, followed by the flags of its variant.

    Args:
        name_or_path: a packaged recipe's name or a TOML file.
        variant: `published` or `paper`.
        sections: the sections to keep; None for all.

    Raises:
        UserError: the recipe or variant does not exist, or the file is not TOML.
    """
    values = _read_recipe(name_or_path)
    variants = {"published": {}, "paper": values.pop("paper", None)}
    changes = variants.get(variant)
    if changes is None:
        have = ", ".join(name for name, table in variants.items() if table is not None)
        raise UserError(f"Recipe {name_or_path!r} has no variant {variant!r}. Give one of: {have}.")
    both = (
        {key: value for key, value in part.items() if sections is None or key in sections} for part in (values, changes)
    )
    return [flag for part in both for flag in to_flags(part)]


def last_flag_value(flags: Sequence[str], name: str, default: str) -> str:
    """Return the last value of a flag, which the full parse needs before it can start."""
    found = default
    for position, flag in enumerate(flags):
        if flag == name and position + 1 < len(flags):
            found = flags[position + 1]
        elif flag.startswith(f"{name}="):
            found = flag.partition("=")[2]
    return found


def join_repeated(flags: Sequence[str], name: str) -> list[str]:
    """Return flags in which a flag that is given several times occurs once, with all its values."""
    others: list[str] = []
    values: list[str] = []
    found = taking = False
    for flag in flags:
        if flag == name or flag.startswith(f"{name}="):
            found, taking = True, flag == name
            values += [] if taking else [flag.partition("=")[2]]
        elif taking and not flag.startswith("--"):
            values.append(flag)
        else:
            taking = False
            others.append(flag)
    return [*others, name, *values] if found else others


def _read_recipe(name_or_path: str) -> dict[str, Any]:
    """Read a recipe's tables."""
    packaged = RECIPES / f"{name_or_path}.toml"
    path = packaged if packaged.is_file() else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise UserError(f"Recipe {name_or_path!r} does not exist. Give a TOML file or one of: {names}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError also for text that is not UTF-8 and a number of 5,000 digits
        raise UserError(f"Recipe {path} is not TOML: {error}.") from None


def nest_key(key: str, value: Any) -> dict[str, Any]:
    """Return a value inside nested tables: `model.freq_stride` is a key of the table `model`."""
    head, _, rest = key.partition(".")
    return {head: nest_key(rest, value) if rest else value}


def to_flags(values: Mapping[str, Any], prefix: str = "--") -> list[str]:
    """Return nested tables as flags, without the keys whose value is None, which TOML does not have."""
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
