"""Help texts of the flags: the attributes' docstrings, each as one paragraph.

tyro joins the lines of a docstring only if they begin with a letter. Those of an attribute are indented, so its help
would break where the source does.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import os
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def show_help(kind: type[Any]) -> Iterator[None]:
    """Set the texts of a class of settings; the context may print them to a program that ends early, such as `head`.

    Args:
        kind: class of a stage's settings.
    """
    set_help_texts(kind)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        sys.exit()


def set_help_texts(kind: type[Any]) -> None:
    """Store the docstring of each field of a dataclass, and of the dataclasses in it, where tyro looks first.

    Args:
        kind: class of a stage's settings.
    """
    texts: dict[str, str] = {}
    for own in reversed(kind.__mro__[:-1]):
        texts.update(_read_attribute_docs(own))
    for field in dataclasses.fields(kind):
        if field.name in texts:
            field.metadata = types.MappingProxyType({**field.metadata, "help": texts[field.name]})
    for section in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(section):
            set_help_texts(typing.cast("type[Any]", section))


def _read_attribute_docs(kind: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of the attributes that a class defines itself; nothing without its source."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:
        return
    (definition,) = ast.parse(source).body
    for node, follower in itertools.pairwise(typing.cast("ast.ClassDef", definition).body):
        match node, follower:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())
