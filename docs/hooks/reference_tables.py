"""Tables of the reference pages, made from the code while MkDocs builds the site.

A page holds a comment of its own line, such as `<!-- generate: stages -->`, and this hook puts the table in its place.
The flags come from the dataclasses that the command line parses, so a page cannot name a flag that does not exist.
"""
# ruff: noqa: INP001  # MkDocs loads a hook as a file

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from ast_core.config import Recipe
from ast_core.weights.hub import known_models as known
from pipeline.cli.main import STAGES, StageEntry
from pipeline.cli.recipe_file import RECIPES
from pipeline.cli.stages import Common

ROOT = Path(__file__).resolve().parents[2]
COMMENT = re.compile(r"^<!-- generate: (\w+)((?: \S+)*) -->$", re.MULTILINE)
SECTIONS: dict[str, type[Any]] = typing.get_type_hints(Recipe)
"""Classes of a recipe's sections by name; their keys are also flags of the stages."""
SOURCES = tomllib.loads((Path(__file__).parent / "recipe_sources.toml").read_text(encoding="utf-8"))
"""Source of the default of each recipe key, by section and key."""
TYPES = {str: "text", Path: "path", int: "whole number", float: "number", bool: "switch"}
PROMETHEUS = ROOT / "pipeline" / "reporting" / "prometheus.py"
KINDS = ("Gauge", "Counter", "Histogram")
Row = Sequence[str]


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the comments of a page by what they generate; MkDocs calls this for each page."""
    return COMMENT.sub(lambda found: GENERATORS[found[1]](*found[2].split()), markdown)


class Attribute(NamedTuple):
    """An attribute of a class, as its source says."""

    annotation: str
    default: str
    doc: str


class Flag(NamedTuple):
    """A flag of a stage, or a key of a recipe."""

    name: str
    values: str
    default: str
    doc: str


@functools.cache
def read_attributes(module: str, name: str) -> dict[str, Attribute]:
    """Return the annotated attributes of a class from its source, without importing it."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for statement, following in pairwise([*body, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            default = ast.unparse(statement.value) if statement.value else ""
            found[statement.target.id] = Attribute(ast.unparse(statement.annotation), default, _read_text(following))
    return found


def _read_text(statement: ast.stmt) -> str:
    """Return the text of a docstring on one line; "" for any other statement."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return " ".join(value.value.split()) if is_text else ""


def sections_of(kind: type[Any]) -> list[str]:
    """Return the sections of a recipe that a settings class takes. A field `model` may also be a model to use."""
    hints = typing.get_type_hints(kind)
    return [name for name, section in SECTIONS.items() if hints.get(name) is section]


def read_flags(kind: type[Any]) -> dict[str, Flag]:
    """Return the flags of a settings class by the name of the field, without those of a recipe's sections."""
    sections = sections_of(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= {name: own.doc for name, own in read_attributes(base.__module__, base.__name__).items() if own.doc}
    return {
        field.name: _describe_flag(field, hints[field.name], docs.get(field.name, ""))
        for field in dataclasses.fields(kind)
        if field.name not in sections
    }


def _describe_flag(field: dataclasses.Field[Any], hint: Any, doc: str) -> Flag:
    extras = getattr(hint, "__metadata__", ())
    name = field.name.upper() if tyro.conf.Positional in extras else f"--{dashed(field.name)}"
    said = [extra.help_behavior_hint for extra in extras if getattr(extra, "help_behavior_hint", None)]
    default = said[0].strip("()").removeprefix("default: ") if said else _describe_default(field)
    return Flag(name, _describe_type(hint), default, doc)


def _describe_type(hint: Any) -> str:
    """Return the values that a flag takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _describe_type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(_describe_type(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"{_describe_type(arguments[0])}, one or more"
    return TYPES[hint]


def _describe_default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(f"`{item}`" for item in value) or "empty"
    if value is None or value == "":
        return "empty"
    return f"`{value}`"


def dashed(name: str) -> str:
    """Return the name of a field as flags spell it."""
    return name.replace("_", "-")


def table(head: Row, rows: Iterable[Row]) -> str:
    """Return a Markdown table; `|` inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def stages() -> str:
    """Return a chapter for each stage: what it does, a command, its flags and its sections of the recipe."""
    return "\n".join(_describe_stage(name, entry) for name, entry in STAGES.items())


def _describe_stage(name: str, entry: StageEntry) -> str:
    kind = entry.load_settings_class()
    shared = read_flags(Common) if issubclass(kind, Common) else {}
    own = {key: flag for key, flag in read_flags(kind).items() if shared.get(key) != flag}
    sections = sections_of(kind)
    links = ", ".join(f"[`{section}`](recipes.md#{section})" for section in sections)
    parts = [f"### {name}\n", "\n\n".join(_format_docstring(entry.read_docstring())) + "\n"]
    parts += [_flags_table(own.values())] if own else []
    parts += ["It takes the [flags of every stage of a run](#flags-of-every-stage-of-a-run).\n"] if shared else []
    parts += [f"It takes the keys of these sections of the recipe as flags: {links}.\n"] if sections else []
    return "\n".join(parts)


def common_flags() -> str:
    """Return a table of the flags that every stage of a run takes."""
    return _flags_table(read_flags(Common).values())


def _flags_table(flags: Iterable[Flag]) -> str:
    rows = [(f"`{own.name}`", own.values, own.default, own.doc) for own in flags]
    return table(("flag", "values", "default", "meaning"), rows)


def _format_docstring(text: str) -> Iterator[str]:
    """Yield the paragraphs of a stage's docstring; a paragraph of commands becomes a block of code."""
    for paragraph in text.split("\n\n"):
        commands = all(line.startswith("python ") for line in paragraph.splitlines())
        yield f"```bash\n{paragraph}\n```" if commands else paragraph


def recipe_keys() -> str:
    """Return a chapter for each section of a recipe: every key with its default, its meaning and its source."""
    parts = []
    for section, kind in SECTIONS.items():
        rows = [
            (f"`{key}`", own.values, own.default, own.doc, SOURCES[section][key])
            for key, own in read_flags(kind).items()
        ]
        place = f"`{kind.__name__}` in `{kind.__module__.replace('.', '/')}.py`"
        text = f"Flags: `--{dashed(section)}.KEY`. Defined by {place}.\n"
        parts += [f"### {section}\n", text, table(("key", "values", "default", "meaning", "source"), rows)]
    return "\n".join(parts)


def recipes() -> str:
    """Return the text of every packaged recipe, whose comments say where its values come from."""
    parts = []
    for path in sorted(RECIPES.glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        body = "\n".join(f"    {line}".rstrip() for line in f"```toml\n{text}```".splitlines())
        parts.append(f'??? note "{path.stem}"\n\n{body}\n')
    return "\n".join(parts)


def fields(path: str) -> str:
    """Return a table of the fields of a dataclass, which is named by its module and its name."""
    module, _, name = path.rpartition(".")
    rows = [
        (f"`{key}`", f"`{own.annotation}`", own.doc)
        for key, own in read_attributes(module, name).items()
        if "ClassVar" not in own.annotation
    ]
    return table(("field", "type", "meaning"), rows)


def prometheus() -> str:
    """Return a table of the metrics that the code exports to Prometheus, under the names that Ray gives them."""
    tree = ast.parse(PROMETHEUS.read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    rows = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            name, doc = (ast.literal_eval(argument) for argument in node.args[:2])
            full = f"ray_{name}{'_total' if node.func.id == 'Counter' else ''}"
            labels = ", ".join(f"`{label}`" for label in _evaluate_labels(node.args[-1], constants))
            rows.append((f"`{full}`", node.func.id.lower(), doc, labels))
    return table(("metric", "kind", "meaning", "labels"), sorted(rows))


def _evaluate_labels(node: ast.expr, constants: Mapping[str, ast.expr]) -> list[str]:
    """Return the texts of a tuple that may name other tuples of the module."""
    if isinstance(node, ast.Name):
        return _evaluate_labels(constants[node.id], constants)
    if isinstance(node, ast.Starred):
        return _evaluate_labels(node.value, constants)
    if isinstance(node, ast.Tuple):
        return [label for part in node.elts for label in _evaluate_labels(part, constants)]
    return [ast.literal_eval(node)]


def known_models() -> str:
    """Return a table of the published models that this project knows by name."""
    rows = [
        (
            f"`hf:{own.name}`",
            own.data,
            f"{own.freq_stride} x {own.time_stride}",
            str(own.frames),
            own.result,
            own.licence,
        )
        for own in known.known_models().values()
    ]
    return table(("name", "trained on", "strides", "frames", "published result", "licence"), rows)


def benchmarks() -> str:
    """Return a table of the benchmarks, with the commands and the sentence that their docstrings begin with."""
    rows = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        commands = [line for line in text.splitlines() if line.startswith(("python ", "make "))]
        sentence = " ".join(text.split("\n\n")[0].split())
        rows.append((sentence, "<br>".join(f"`{command}`" for command in commands)))
    return table(("what it measures", "commands"), rows)


GENERATORS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (stages, common_flags, recipe_keys, recipes, fields, prometheus, known_models, benchmarks)
}
