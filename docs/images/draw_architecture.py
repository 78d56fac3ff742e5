"""Draw the import contracts of pyproject.toml as architecture.svg.

.venv/bin/python docs/images/draw_architecture.py
"""
# ruff: noqa: INP001

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
WIDTH, MARGIN, GAP, ROW = 760, 24, 10, 34
"""Sizes in pixels: the picture's width, its margin, the space between boxes, the height of a box with one line."""
ARROW = 26
"""Pixels between two packages, where the arrow is."""
FILLS = ("#fdf3e1", "#e3eefb", "#e6f4ea")
"""Colours of the packages, from the top."""


@dataclass
class Package:
    """A package of the picture.

    Attributes:
        name: name of the package.
        layers: its layers from the top; a layer is the names of its modules and whether these may import each other.
        importers: its modules that alone may import a library, with that library.
        forbidden: libraries that none of its modules imports.
    """

    name: str
    layers: list[tuple[list[str], bool]] = field(default_factory=list)
    importers: list[tuple[str, str]] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)


def read_packages(contracts: Sequence[Mapping[str, Any]]) -> list[Package]:
    """Return the packages from the top, with what every contract says about them.

    Raises:
        ValueError: a contract is of a kind that this picture does not show.
    """
    (order,) = (own["layers"] for own in contracts if own["type"] == "layers" and "containers" not in own)
    packages = {name: Package(name) for name in order}
    for contract in contracts:
        if contract["type"] == "layers":
            for container in contract.get("containers", ()):
                packages[container].layers += [_read_layer(layer) for layer in contract["layers"]]
        elif contract["type"] == "forbidden":
            _read_forbidden(contract, packages)
        else:
            raise ValueError(f"{contract['name']}: a contract of type {contract['type']} is not drawn; draw it here.")
    return list(packages.values())


def _read_layer(text: str) -> tuple[list[str], bool]:
    """Return the modules of a layer, and whether they may import each other (`:`) or may not (`|`)."""
    return [name.strip() for name in re.split(r"[|:]", text)], ":" in text


def _read_forbidden(contract: Mapping[str, Any], packages: Mapping[str, Package]) -> None:
    libraries = contract["forbidden_modules"]
    exceptions = [re.fullmatch(r"([\w.]+?)(?:\.\*+)? -> ([\w.]+)", text) for text in contract.get("ignore_imports", ())]
    for match in exceptions:
        if match is None:
            raise ValueError(f"{contract['name']}: an exception is not of the form `module.** -> library`.")
        packages[match[1].split(".")[0]].importers.append((match[1], match[2]))
    if not exceptions:
        for module in contract["source_modules"]:
            packages[module].forbidden += libraries


def draw(packages: Sequence[Package]) -> str:
    """Return the picture as SVG."""
    parts: list[str] = []
    top = MARGIN
    for number, package in enumerate(packages):
        if number:
            parts.append(_arrow(top, top + ARROW))
            top += ARROW + 4
        height = _height(package)
        parts += _draw_package(package, top, height, FILLS[number % len(FILLS)])
        top += height
    notes = [
        "Imports go down only, from package to package and from row to row.",
        "Boxes in one row do not import each other.",
    ]
    for line in notes:
        top += 20
        parts.append(_text(MARGIN, top + 4, line, 13, "#444"))
    top += MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
    head += 'font-family="Helvetica, Arial, sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>', *parts, "</svg>", ""])


def _height(package: Package) -> int:
    rows = len(package.layers) + bool(package.importers)
    return 40 + rows * (ROW + GAP) + (24 if package.forbidden else 0) + (0 if rows else 4)


def _draw_package(package: Package, top: int, height: int, fill: str) -> list[str]:
    parts = [
        _box(MARGIN, top, WIDTH - 2 * MARGIN, height, fill, "#888"),
        _text(MARGIN + 14, top + 26, package.name, 17),
    ]
    top += 40
    for names, may_import in package.layers:
        labels = [f"{', '.join(names)} (may import each other)"] if may_import else names
        parts += _draw_row(labels, top)
        top += ROW + GAP
    if package.importers:
        parts += _draw_row([f"{module}, the only importer of {library}" for module, library in package.importers], top)
        top += ROW + GAP
    if package.forbidden:
        parts.append(_text(MARGIN + 14, top + 12, f"never imports {', '.join(package.forbidden)}", 13, "#a33"))
    return parts


def _draw_row(labels: Sequence[str], top: int) -> list[str]:
    left, width = MARGIN + 14, WIDTH - 2 * MARGIN - 28
    own = (width - GAP * (len(labels) - 1)) / len(labels)
    parts = []
    for number, label in enumerate(labels):
        x = left + number * (own + GAP)
        parts += [_box(x, top, own, ROW, "#fff", "#aaa"), _text(x + own / 2, top + 22, label, 14, anchor="middle")]
    return parts


def _box(x: float, y: float, width: float, height: float, fill: str, line: str) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="6" fill="{fill}" stroke="{line}"/>'


def _text(x: float, y: float, text: str, size: int, colour: str = "#111", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _arrow(top: int, bottom: int) -> str:
    middle = WIDTH / 2
    line = f"M{middle:g} {top + 4}V{bottom - 4}M{middle - 6:g} {bottom - 10}L{middle:g} {bottom - 3}"
    return f'<path d="{line}L{middle + 6:g} {bottom - 10}" stroke="#444" stroke-width="2" fill="none"/>'


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("architecture.svg"), help="file to write")
    arguments = parser.parse_args()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    arguments.out.write_text(draw(read_packages(contracts)))


if __name__ == "__main__":
    main()
