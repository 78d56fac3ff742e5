"""Paths, links, programs, Python names and error messages that the documents mention exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
TOPS = ("ast_core", "pipeline", "tune", "k8s", "tests", "benchmarks", "docs", "examples")
PLACEHOLDER = re.compile(r"[A-Z]{3,}|\*|…")
"""`pipeline/NAME.py` and `k8s/*` stand for any file."""

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])


@functools.cache
def file_names() -> frozenset[str]:
    return frozenset(path.name for top in TOPS for path in (ROOT / top).rglob("*"))


def exists(name: str) -> bool:
    """Return whether a path from the root exists, or a file of a bare name anywhere."""
    return (ROOT / name).exists() or ("/" not in name and name in file_names())


@functools.cache
def names_in(module: str) -> frozenset[str]:
    """Return the names that a module binds at its top level, without importing it."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    path = path if path.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body if path.is_file() else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
    return frozenset(found)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


@each_document
def test_paths_and_links_exist(path: Path) -> None:
    text = path.read_text()
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    paths = [word for span in spans for word in span.split() if re.fullmatch(r"[\w./-]+(\.(py|md|yaml)|/)", word)]
    programs = re.findall(r"python(?: -u)? ([\w./-]+\.py)", text)
    own = [name for name in paths + programs if name.endswith((".py", ".md", ".yaml")) or name.startswith(TOPS)]
    old = set(re.findall(r"^\| `python (\S+\.py)`", text, re.MULTILINE))  # CHANGELOG.md's table of old commands
    missing = [name for name in own if not PLACEHOLDER.search(name) and name not in old and not exists(name)]
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (path.parent / link).exists()]
    assert not missing + links, f"{path.name} names files that do not exist: {missing + links}"


def test_old_imports_have_new_ones() -> None:
    rows = re.findall(r"^\| `((?:ast_core|pipeline|tune)\.\w+)` \| (.+?) \| (.*?) ?\|$", _changelog(), re.MULTILINE)
    assert len(rows) > 80
    wrong = []
    for old, places, renamed in rows:
        modules = [old] if places.startswith("stays") else []
        for module, names in re.findall(r"`([\w.]+\.[\w.]+)`(?: \(([^)]*)\))?", places):
            modules.append(module)
            wrong += [module] if not is_module(module) else []
            wrong += [f"{module}.{name}" for name in re.findall(r"`(\w+)`", names) if name not in names_in(module)]
        for name in re.findall(r"-> `(\w+)`", renamed):
            wrong += [f"{old}: {name}"] if not any(name in names_in(module) for module in modules) else []
    assert not wrong, f"CHANGELOG.md names modules and functions that do not exist: {wrong}"


@functools.cache
def texts_of_the_sources() -> str:
    """Return every string of the packages, a line each, and the page; values of f-strings are left out."""
    page = ROOT / "pipeline" / "serving" / "page"
    found = [path.read_text() for path in page.iterdir() if path.suffix in {".html", ".js"}]
    for path in (path for package in TOPS[:3] for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("\n".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("path", GUIDES, ids=[path.stem for path in GUIDES])
def test_error_messages_of_the_guides_are_those_of_the_code(path: Path) -> None:
    table = path.read_text().partition("## What can go wrong")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    quotes = [quote for cell in cells for quote in re.findall(r"`([^`]+ [^`]+)`", cell)]
    values = r"\.\.\.|\d+|Error:|MLflow:|s3://|\b[A-Z]{3,}\b|\baudio\b|\bwaveform\b"
    parts = [part.strip() for quote in quotes for part in re.split(values, quote)]
    missing = [part for part in parts if " " in part and part not in texts_of_the_sources()]
    assert not cells or len(parts) > len(quotes) > 2
    assert not missing, f"{path.name} quotes messages that the code does not have: {missing}"


def _changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text()
