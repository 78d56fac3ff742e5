"""Check the labels of rows in Parquet files, and number them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ast_core.dataset.label_names import LabelNames, sort_labels
from ast_core.dataset.loose.label_cells import LONGEST_LABEL
from ast_core.dataset.parquet.parquet_rows import NOT_UTF8
from ast_core.dataset.problems import require_printable, shorten

_ADVICE = "give an empty list for a recording that has none of the classes"


class RowLabels:
    """The labels of all rows so far. Rows with the same labels share one tuple.

    Args:
        label_names: list of all classes, in its order; None without one.
        keep_all: whether classes of the list stay that no row has.
        audioset: whether labels are machine ids, whose names other columns or the list hold.
    """

    def __init__(self, label_names: LabelNames | None, keep_all: bool, audioset: bool) -> None:
        self._label_names = label_names
        self._keep_all = keep_all and label_names is not None
        self._audioset = audioset
        self._numbers: dict[str, int] = {}
        self._shared: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._displayed: dict[int, str] = {}
        self._displays: dict[str, int] = {}
        self._order: dict[str, int] = {}
        self._integers = True
        self.commas = ""
        """First label of text that has a comma; "" if no label has one."""

    def read(self, cell: Any, class_names: tuple[str, ...] | None, displayed: Any = None) -> tuple[int, ...]:
        """Return the numbers of a row's labels, ascending.

        Args:
            cell: label or list of labels.
            class_names: names of integers.
            displayed: display names of the labels; they count only if there are as many of them.

        Raises:
            ValueError: the labels are missing or cannot be used; the text says why.
        """
        if cell is None:
            raise ValueError(f"the label is null; {_ADVICE}")
        if cell is NOT_UTF8:
            raise ValueError("the labels are not UTF-8; write the file again with texts in UTF-8")
        values = cell if isinstance(cell, list) else self._split(cell, class_names)
        numbers = [self._number(value, class_names) for value in values]
        if displayed is not None:
            self._compare_names(numbers, values, displayed)
        key = tuple(sorted(set(numbers)))
        return self._shared.setdefault(key, key)

    def finish(self) -> tuple[tuple[str, ...], dict[tuple[int, ...], tuple[int, ...]]]:
        """Return the names of the classes in their order, and the final labels of each tuple that `read` returned."""
        texts = list(self._numbers)
        used = {number for key in self._shared for number in key}
        if self._label_names is not None:
            places = {self._numbers[text]: self._label_names.places[text] for text in texts}
            kept = list(range(len(self._label_names.names))) if self._keep_all else sorted({places[n] for n in used})
            final = {place: new for new, place in enumerate(kept)}
            new = {number: final[places[number]] for number in used}
            names = [self._label_names.names[place] for place in kept]
        else:
            ordered = sorted(used, key=lambda number: self._rank(texts[number]))
            new = {number: place for place, number in enumerate(ordered)}
            names = [self._displayed.get(number, texts[number]) for number in ordered]
        return tuple(names), {key: sort_labels(key, new) for key in self._shared}

    @property
    def single(self) -> bool:
        """Whether every row so far has exactly one label."""
        return all(len(key) == 1 for key in self._shared)

    @property
    def listed(self) -> bool:
        """Whether a list names the classes."""
        return self._label_names is not None

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Machine ids of the AudioSet copy for which there is no display name."""
        if not self._audioset or self._label_names is not None:
            return ()
        return tuple(text for text, number in self._numbers.items() if number not in self._displayed)

    def _rank(self, text: str) -> tuple[int, int, str]:
        """Return the place of a label in the order: as in the metadata, else by number or by name."""
        number = int(text) if self._integers else 0
        return self._order.get(text, len(self._order)), number, self._displayed.get(self._numbers[text], text)

    def _split(self, cell: Any, class_names: tuple[str, ...] | None) -> Sequence[Any]:
        """Return the labels of a cell that is no list; `;` or `|` separate several names, as in a manifest."""
        if not isinstance(cell, str) or class_names is not None:
            return [cell]
        if "," in cell and not self.commas:
            self.commas = cell
        mark = next((mark for mark in (";", "|") if mark in cell), None)
        return [part for part in (cell.split(mark) if mark else [cell]) if part.strip()]

    def _number(self, value: Any, class_names: tuple[str, ...] | None) -> int:
        text = _name_class(value, class_names)
        number = self._numbers.get(text)
        if number is None:
            self._check(text)
            if self._label_names is not None and self._label_names.find(text) is None:
                raise ValueError(f"the label {shorten(text)} is not in {self._label_names.path}")
            number = self._numbers[text] = len(self._numbers)
            self._integers = self._integers and isinstance(value, int) and class_names is None
            for name in class_names or ():
                self._order.setdefault(name, len(self._order))
        return number

    def _check(self, text: str) -> None:
        if not text:
            raise ValueError(f"a label is empty; {_ADVICE}")
        require_printable("label", text)
        if len(text) > LONGEST_LABEL:
            raise ValueError(f"the label {shorten(text)} is longer than {LONGEST_LABEL} characters")

    def _compare_names(self, numbers: Sequence[int], values: Sequence[Any], displayed: Any) -> None:
        """Note the display names of a row's labels; ValueError if another row or the list says other names."""
        if displayed is NOT_UTF8:
            raise ValueError("human_labels is not UTF-8; write the file again with texts in UTF-8")
        if not isinstance(displayed, list) or len(displayed) != len(values):
            return
        for number, value, name in zip(numbers, values, displayed, strict=True):
            if name != self._displayed.get(number):
                self._note_name(number, value, name)

    def _note_name(self, number: int, value: str, name: Any) -> None:
        """Note the display name of a label when it is first seen, or raise ValueError if it contradicts another."""
        if not isinstance(name, str):
            raise ValueError(f"human_labels has {shorten(str(name))} for the label {shorten(value)}; give a text")
        self._check(name)
        known, where = self._displayed.get(number), "an earlier row"
        if self._label_names is not None:
            known, where = self._label_names.names[self._label_names.places[value.strip()]], self._label_names.path
        if known is not None and known != name:
            raise ValueError(
                f"human_labels names {shorten(value)} {shorten(name)}, but {where} names it {shorten(known)}"
            )
        if self._displays.setdefault(name, number) != number:
            raise ValueError(f"human_labels names {shorten(value)} {shorten(name)}, which is the name of another label")
        self._displayed[number] = name


def _name_class(value: Any, class_names: tuple[str, ...] | None) -> str:
    """Return the text of one label; ValueError says why it cannot be one."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        if class_names is None:
            if value < 0:
                raise ValueError(f"the label is {value}; give 0 or more, or {_ADVICE.removeprefix('give ')}")
            return str(value)
        if 0 <= value < len(class_names):
            return class_names[value]
        raise ValueError(
            f"the label is {value}, but the file's metadata names the classes 0 to {len(class_names) - 1}; {_ADVICE}"
        )
    if value is None:
        raise ValueError(f"a label is null; {_ADVICE}")
    raise ValueError(f"a label is {shorten(str(value))}; give a text or an integer")
