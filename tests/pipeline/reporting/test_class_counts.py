"""Clips of each class and split as a table and as warnings."""

from __future__ import annotations

from rich.console import Console

from ast_core.config import DataConfig
from pipeline.reporting.class_counts import classes_table, order_splits, warn_of_empty_classes

DATA = DataConfig(train_splits=("a", "b"), validation_split="v", test_split="t")


def text_of(table: object) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_splits_are_shown_in_the_order_of_their_use() -> None:
    counts = order_splits({"other": [1], "t": [2], "v": [3], "b": [4], "a": [5]}, DATA)
    assert list(counts) == ["a", "b", "v", "t", "other"]
    assert "[brackets]" in text_of(classes_table(["[brackets]"], counts))


def test_of_many_classes_those_with_the_fewest_clips_are_shown() -> None:
    text = text_of(classes_table([f"class{n:03d}" for n in range(200)], {"a": list(range(200))}))
    assert "class059" in text
    assert "class060" not in text
    assert "60 classes" in text


def test_classes_without_clips_are_named_by_what_they_lack() -> None:
    counts = {"a": [1, 0, 0], "b": [0, 1, 0], "v": [1, 1, 1], "t": [0, 0, 5]}
    training, test = warn_of_empty_classes(["x", "y", "z"], counts, DATA)
    assert training.startswith("1 of 3 classes ('z') are without training clips")
    assert test.startswith("2 of 3 classes ('x', 'y') are without test clips")
    names = [f"c{n}" for n in range(30)]
    (warning,) = warn_of_empty_classes(names, {"a": [1] * 30, "v": [1] * 30, "t": [0] * 30}, DATA)
    assert "'c9' and 20 more" in warning


def test_a_split_that_no_setting_names_is_not_warned_of() -> None:
    data = DataConfig(train_splits=("a",), validation_split="", test_split="t")
    assert warn_of_empty_classes(["x"], {"a": [1], "v": [0], "t": [1]}, data) == []
