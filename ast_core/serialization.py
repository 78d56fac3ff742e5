"""Convert config dataclasses to JSON values and back, with every value checked."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ast_core.errors import require

ConfigT = TypeVar("ConfigT")


SHOWN = 80
"""Characters of a wrong value that an error repeats."""


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values; tuples become lists."""
    return {
        key: list(value) if isinstance(value, tuple) else to_dict(value) if dataclasses.is_dataclass(value) else value
        for key, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def from_dict(kind: type[ConfigT], values: Any) -> ConfigT:
    """The flat config dataclass that `to_dict` wrote, checked as what a stranger may have written.

    Raises:
        UserError: a key is unknown to this version or missing, or a value is of another type or no finite number.
    """
    require(isinstance(values, dict), f"{kind.__name__} is {_shown(values)}, not an object.")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    require(not unknown, f"{kind.__name__} does not know {_shown(unknown)}: made by another version?")
    needed = {
        name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING
    }  # fmt: skip
    missing = sorted(needed - set(values))
    require(not missing, f"{kind.__name__} lacks {', '.join(missing)}.")
    hints = _hints(kind)  # type: ignore[arg-type]  # a class is hashable
    for key, value in values.items():
        require(_fits(value, hints[key]), f"{kind.__name__}: {key} is {_shown(value)}, which it cannot be.")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a field's type; a float is finite, and may be written as an integer."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if arguments and origin is not dict:  # what may be None
        return any(_fits(value, one) for one in arguments)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, origin or hint)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
