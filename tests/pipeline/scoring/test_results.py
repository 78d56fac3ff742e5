"""Stored results of evaluations: those of older versions are read, wrong ones are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ast_core.errors import UserError
from pipeline.scoring.results import (
    ClassResult,
    EvaluationResult,
    measure_classes,
    measure_intervals,
    measure_metrics,
    write_per_class,
)

OLD = {"bundle_digest": "d", "clips_listed": 3, "clips_evaluated": 2, "metrics": {"mAP": 0.5, "mAUC": None}}
"""The keys that every version wrote."""


def test_a_written_result_is_read_back_also_where_a_score_is_not_defined(tmp_path: Path) -> None:
    labels_NC = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    scores_NC = np.random.default_rng(0).random((4, 3), np.float32)
    result = EvaluationResult(
        "d", 5, 4,
        measure_metrics(scores_NC, labels_NC, True),
        resamples=4,
        intervals=measure_intervals(scores_NC, labels_NC, True, 4),
        per_class=measure_classes(scores_NC, labels_NC, ["a", "b", "no clip"]),
    )  # fmt: skip
    path = tmp_path / "seed-0.json"
    result.write(path)
    assert EvaluationResult.load(path) == result
    assert result.per_class["no clip"] == ClassResult(positives=0.0)
    assert set(json.loads(path.read_text())["per_class"]["a"]) == {
        "positives", "ap", "auc", "threshold", "precision", "recall", "f1",
    }  # fmt: skip


def test_the_csv_has_one_row_a_class_in_the_order_of_the_columns(tmp_path: Path) -> None:
    write_per_class(tmp_path / "c.csv", {"a": ClassResult(2.0, 0.5, 0.25, 0.1, 0.2, 0.3, 0.4), "b": ClassResult(0.0)})
    assert (tmp_path / "c.csv").read_text().splitlines() == [
        '"label","positives","ap","auc","threshold","precision","recall","f1"',
        '"a",2,0.5,0.25,0.1,0.2,0.3,0.4',
        '"b",0,,,,,,',
    ]


@pytest.mark.parametrize("more", [{}, {"a_key_of_another_version": [1]}])
def test_a_result_of_another_version_is_read(tmp_path: Path, more: dict[str, object]) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**OLD, **more}))
    found = EvaluationResult.load(tmp_path / "r.json")
    assert (found.metrics, found.intervals, found.evaluated_on) == ({"mAP": 0.5, "mAUC": None}, {}, "")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "EvaluationResult is \\[\\]; give an object"),
        ({**OLD, "metrics": {"mAP": "high"}}, "metrics.mAP is 'high'"),
        ({**OLD, "clips_listed": None}, "clips_listed is None"),
        ({**OLD, "per_class": {"a": {"ap": 0.5}}}, "lacks positives"),
        ({**OLD, "intervals": {"mAP": 0.5}}, "intervals.mAP is 0.5; give a list"),
        ({"metrics": {}}, "lacks bundle_digest"),
    ],
)
def test_a_wrong_result_is_refused_by_name_and_measured_again_only_if_it_is_of_other_clips(
    tmp_path: Path, content: object, says: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{path}.*{says}"):
        EvaluationResult.load(path)
    assert EvaluationResult.load_if_same(path, {"bundle_digest": "of another bundle"}) is None
