"""Convert config dataclasses to JSON values and back, and check every value on the way."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from ast_core.errors import UserError, require

ConfigT = TypeVar("ConfigT")


SHOWN = 80
"""Characters of a wrong value that an error repeats."""
NAN_ALLOWED = {"nan_allowed": True}
"""Metadata of a float field that may hold NaN or infinity."""
_TYPE_NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", NoneType: "null"}


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON values; tuples become lists, nested dataclasses become objects."""
    return {f.name: _to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}


def to_identity(config: Any) -> dict[str, Any]:
    """Return `to_dict` without the class's `LATER_KEYS` that have their defaults.

    A later version added these keys. Hashes and comparisons of configs from before stay as they were.
    """
    later = getattr(config, "LATER_KEYS", ())
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in later}
    return {key: value for key, value in to_dict(config).items() if key not in later or value != defaults[key]}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return value


def from_dict(kind: type[ConfigT], values: Any) -> ConfigT:
    """Build the config dataclass that `to_dict` wrote, nested dataclasses included, and check every value.

    The values are untrusted input. A dataclass with `IGNORES_UNKNOWN_KEYS = True` accepts keys that it does not have.

    Raises:
        UserError: a key is unknown to this version or missing, or a value has another type or is not a finite number.
    """
    return cast("ConfigT", _build(kind, values, kind.__name__, ": "))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, values: Any, name: str, separator: str = ".") -> Any:
    """Build one dataclass; `name` and `separator` make up the names of its fields in errors."""
    require(isinstance(values, dict), f"{name} is {_shorten(values)}; give an object.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if getattr(kind, "IGNORES_UNKNOWN_KEYS", False):
        values = {key: value for key, value in values.items() if key in fields}
    unknown = sorted(set(values) - set(fields))
    require(not unknown, f"{name} does not know {_shorten(unknown)}; another version of this program may have made it.")
    needed = {key for key, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = sorted(needed - set(values))
    require(not missing, f"{name} lacks {', '.join(missing)}.")
    hints = _hints(kind)
    return kind(
        **{
            key: value
            if fields[key].metadata.get("nan_allowed") and _is_number(value)
            else _convert(value, hints[key], f"{name}{separator}{key}")
            for key, value in values.items()
        }
    )


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Return a JSON value as a field's type; UserError that says which type is allowed."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name)
    origin, arguments = get_origin(hint), get_args(hint)
    if not _fits(value, hint):
        raise UserError(f"{name} is {_shorten(value)}; give {_describe(hint)}.")
    if origin is tuple:
        return tuple(_convert(item, arguments[0], f"{name}[{place}]") for place, item in enumerate(value))
    if origin is dict and arguments[1] is not Any:
        return {key: _convert(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
    if _is_union(hint):
        return _convert(value, next(one for one in arguments if _fits(value, one)), name)
    return value


def _fits(value: Any, hint: Any) -> bool:  # noqa: PLR0911  # one line a kind of type
    """Return whether a JSON value has a field's type, its items aside. An integer may stand for a float."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if _is_union(hint):
        return any(_fits(value, one) for one in arguments)
    if dataclasses.is_dataclass(hint) or origin is dict:
        return isinstance(value, dict)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if hint is float:
        return _is_number(value) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _is_union(hint: Any) -> bool:
    return NoneType in get_args(hint)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _describe(hint: Any) -> str:
    """Return the values that a field takes, as an error names them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if _is_union(hint):
        return " or ".join(_describe(one) for one in arguments)
    if origin is tuple:
        return "a list"
    return _TYPE_NAMES.get(hint, "an object")


def _shorten(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
