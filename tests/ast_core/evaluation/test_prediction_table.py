"""Predictions of classes with hostile names keep their columns in Parquet, CSV and JSON."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ast_core.evaluation.prediction_table import (
    Prediction,
    classes_of,
    prediction_schema,
    top_classes,
    write_predictions,
)

COLUMNS = ["path", "start_s", "end_s", "error", "labels"]
CLASSES = (
    *COLUMNS, "probabilities", "decided", "clip_error", "p:dog", "p:p:dog", "dog", "classes", '=HYPERLINK("x")',
    "rain, heavy", "a;b", "two\nlines", 'a "quoted" name', "개 짖는 소리", " space ", "Dog", "0", "nan", "null", "[x]",
    unicodedata.normalize("NFC", "Zoé"), unicodedata.normalize("NFD", "Zoé"),
)  # fmt: skip
SCORES_C = np.linspace(0, 1, len(CLASSES), dtype=np.float32)
PREDICTIONS = [
    Prediction("a.wav", 0.0, 2.5, "", CLASSES, SCORES_C),
    Prediction("broken, or not.wav", error='decode: "RIFF", no end'),
    Prediction("=cmd.wav", 2.5, 5.0, "", (), SCORES_C[::-1]),
]


def test_parquet_keeps_the_classes_in_the_metadata_and_each_value(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out.parquet", PREDICTIONS, CLASSES)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(prediction_schema(CLASSES), check_metadata=False)
    assert classes_of(table.schema) == tuple(json.loads(table.schema.metadata[b"classes"])) == CLASSES
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [own.path for own in PREDICTIONS]
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0.0, 2.5), (None, None), (2.5, 5.0)]
    assert [row["error"] for row in rows] == [own.error for own in PREDICTIONS]
    assert [row["labels"] for row in rows] == [list(CLASSES), None, []]
    np.testing.assert_array_equal(np.array(rows[0]["probabilities"], np.float32), SCORES_C)
    assert rows[1]["probabilities"] == [None] * len(CLASSES)


def test_wide_csv_has_a_column_of_its_own_for_each_class(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out.csv", PREDICTIONS, CLASSES)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        header, good, refused, formula = csv.reader(file)
    assert header == [*COLUMNS, *(f"p:{name}" for name in CLASSES)]
    assert len(set(header)) == len(header)
    assert good[:4] == ["a.wav", "0", "2.5", ""]
    assert json.loads(good[4]) == list(CLASSES)
    np.testing.assert_allclose(np.array(good[5:], float), SCORES_C, atol=1e-7)
    assert refused == ["broken, or not.wav", "", "", PREDICTIONS[1].error, *[""] * (1 + len(CLASSES))]
    assert Path(formula[0]) == Path("=cmd.wav")
    assert not [cell for row in (header, good, refused, formula) for cell in row if cell.startswith(("=", "+", "@"))]
    assert list(pd.read_csv(tmp_path / "out.csv")) == header


def test_json_has_the_probabilities_by_class(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out.json", PREDICTIONS, CLASSES)
    good, refused, _ = json.loads((tmp_path / "out.json").read_text())
    assert sorted(good) == sorted(refused) == sorted([*COLUMNS, "probabilities"])
    assert good["probabilities"] == dict(zip(CLASSES, SCORES_C.tolist(), strict=True))
    assert (refused["labels"], refused["probabilities"]) == (None, None)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_path_that_is_not_utf8_is_written_with_escapes(tmp_path: Path, suffix: str) -> None:
    path = os.fsdecode(b"caf\xe9.wav")
    write_predictions(tmp_path / f"out{suffix}", [Prediction(path, error="read: no access")], ("a",))
    content = (tmp_path / f"out{suffix}").read_bytes()
    assert b"caf\\udce9.wav" in content.replace(b"\\\\", b"\\")


def test_top_classes_are_the_most_probable_first_and_the_earlier_one_of_two_alike() -> None:
    assert top_classes(np.array([0.1, 0.7, 0.7, 0.9], np.float32), 3) == [3, 1, 2]
