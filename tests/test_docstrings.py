"""Docstrings begin with a verb or a noun, and code and documents use the project's words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for package in ("ast_core", "pipeline", "tune") for path in (ROOT / package).rglob("*.py"))
PREPOSITION = re.compile(
    r"about|above|across|after|against|along|among|around|as|at|before|behind|below|beneath|besides?|between|beyond|by|"
    r"despite|during|except|for|from|in|inside|into|like|near|of|off|on|onto|out|outside|over|past|per|since|through|"
    r"throughout|till|to|towards?|under|underneath|until|up|upon|via|with|within|without"
)
BODIES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

GLOSSARY = {
    r"mend(s|ed|ing)?": "fix",
    r"stumps?": "temporary file",
    r"whoever": "the user, or name who it is",
    r"nobody": "no one",
    r"befell|befall(s|en)?": "happened to",
    r"told": "reported",
    r"beside": "next to",
    r"strangers?('s)?": "untrusted input",
    r"(is|are) none": "is missing, does not exist",
    r"(gives?|gave|given) back": "returns",
}
"""Words that say little to a reader whose first language is another, and what to write for them."""
WORDS = re.compile(rf"(?<![A-Za-z0-9])(?i:{'|'.join(GLOSSARY)})(?<!None)(?![A-Za-z0-9])")
"""They are found in names with underscores, too, and `x is None` of Python is not one of them."""
SUFFIXES = {".py", ".md", ".toml", ".html", ".yaml", ".yml"}
SKIPPED = {"build", "site", "work", "shared", "corpus"}
"""Folders that runs and `make docs` make, and inputs that crashed a reader once."""
OWN = Path(__file__).resolve()
"""The only file that is not searched: it names the words."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring: a string that opens a body, or that follows an assignment."""
    for node in ast.walk(tree):
        if not isinstance(node, BODIES):
            continue
        before: ast.stmt | None = None
        for statement in node.body:
            opens = before is None
            follows = isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(node, ast.Module | ast.ClassDef)
            value = statement.value if isinstance(statement, ast.Expr) else None
            if (opens or follows) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value
            before = statement


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file, without the tables of words and of old names."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.name not in {"CONTRIBUTING.md", "CHANGELOG.md"} or not line.startswith("|"):
            yield number, line


def first_word(text: str) -> str:
    """Return the first word in lower case: "for" of "For the help text: ..."."""
    found = re.match(r"\W*([\w'-]+)", text)
    return found[1].lower() if found else ""


def documents() -> Iterator[Path]:
    """Yield every file of code and text, without what git ignores."""
    for top in sorted(ROOT.iterdir()):
        if top.name.startswith(".") or top.name in SKIPPED:
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(ROOT)
            if path.suffix in SUFFIXES and path != OWN and not SKIPPED & set(name.parts):
                yield path


def test_no_docstring_begins_with_a_preposition() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in SOURCES
        for line, text in docstrings(ast.parse(path.read_text()))
        if PREPOSITION.fullmatch(first_word(text))
    ]
    assert not wrong, f"{len(wrong)} docstrings begin with a preposition:\n" + "\n".join(wrong)


def test_code_and_documents_use_the_glossary() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found[0]!r} in {line.strip()}"
        for path in documents()
        for number, line in lines_of(path)
        for found in WORDS.finditer(line)
    ]
    assert not wrong, f"{len(wrong)} words that the glossary of CONTRIBUTING.md replaces:\n" + "\n".join(wrong)
