"""Read the label names of a table's cell, and write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ast_core.dataset.problems import require_printable, shorten

LONGEST_LABEL = 500
"""Largest number of characters in a label; AudioSet's longest has 58."""
_UNCLEAR_COMMA = re.compile(r",\s|\s,|(?<=\d),(?=\d)|[\uff0c\u3001\uff1b]")
"""A comma that may be part of a name: next to a space, between digits, or one of the Chinese and Japanese ones."""
_READ_OTHERWISE = re.compile(r"[|,\uff0c\u3001\uff1b\[]")
"""A character of a name that `split_labels` would take for a separator or for a list, unless a `;` follows."""


def read_text(column: str, value: object) -> str:
    """Return an optional cell as text; a whole number becomes its digits."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{column} is {shorten(str(value))}; give a text")


def split_labels(given: object, known: Collection[str] = frozenset()) -> tuple[str, ...]:
    """Return the sorted label names of a cell: a list, or a text with ';' between several names; none if it is empty.

    Without ';', '|' separates names, and so does ',' without a space after it, as in FSD50K's lists. A comma with a
    space may also be part of a name, as in AudioSet's "Male speech, man speaking", and so may one between digits.
    Such a text is refused, unless it is a name of class_labels_indices.csv: only the user knows what it means.

    Args:
        given: cell.
        known: names that may have commas.
    """
    if given is not None and not isinstance(given, str | list):
        raise ValueError(f"labels is {shorten(str(given))}; give a text or a list, with ';' between several labels")
    parts = _split_text(given.strip(), known) if isinstance(given, str) else given or []
    names = sorted({read_text("a label", part).strip() for part in parts} - {""})
    for name in names:
        require_printable("label", name)
        if len(name) > LONGEST_LABEL:
            raise ValueError(f"the label {shorten(name)} is longer than {LONGEST_LABEL} characters")
    return tuple(names)


def _split_text(text: str, known: Collection[str]) -> list[str]:
    if text in known:
        return [text]
    if text[:1] == "[" and text[-1:] == "]":
        raise ValueError(f"labels is {shorten(text)}, a list that became text; write the names with ';' between them")
    if ";" in text or "|" in text:
        return text.split(";" if ";" in text else "|")
    parts = text.split(",")
    numbers = all(part.isdecimal() for part in parts)
    if _UNCLEAR_COMMA.search(text) and not numbers:
        several = ";".join(part.strip() for part in re.split("[,\uff0c\u3001\uff1b]", text))
        raise ValueError(
            f"labels is {shorten(text)}, which may be several labels or one with a comma; write {shorten(several)} for "
            f"several, {shorten(text + ';')} for one"
        )
    return parts


def join_labels(names: Sequence[str]) -> str:
    """Return the text of a cell that `split_labels` reads as these names, if none of them has a `;`."""
    text = ";".join(names)
    return f"{text};" if _READ_OTHERWISE.search(text) else text
