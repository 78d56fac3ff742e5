"""The report is one file without network access, and shows the numbers of the evaluation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import NewStore
from prepared import write_shards

from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from ast_core.weights.bundle import read_members, write_bundle
from ast_core.weights.bundle_description import BundleFacts
from pipeline.cli.stages import DataConfig, EvaluateSettings, ReportSettings
from pipeline.evaluate import evaluate
from pipeline.report import report
from pipeline.reporting.hard_clips import clip_losses, confusion_matrix, most_confused_pairs

HOSTILE = "<script>alert('x')</script> & \"co\""


@pytest.fixture
def run_dir(tmp_path: Path, trained_bundle: Path, new_store: NewStore) -> Path:
    """Write a run of one member, with a label that a page without escaping would run as code."""
    new_store(tmp_path)
    write_shards(tmp_path / "shards", {"train": 6, "test": 9})
    path = tmp_path / "shards" / "index.json"
    index = read_hashed_json(path, "index")
    labels = [HOSTILE, *index["labels"][1:]]
    write_hashed_json(path, index | {"labels": labels})
    name, weights, identity = read_members(trained_bundle)[0]
    write_bundle(trained_bundle, [(name, weights, {**identity, "labels": labels})], True, BundleFacts(role="member"))
    return tmp_path


def settings_of(run_dir: Path, kind):
    values = {"run_dir": run_dir, "shards": run_dir / "shards", "experiment": "test", "workers": 1}
    return kind(**values, tracking=f"sqlite:///{run_dir}/mlflow.db", data=DataConfig(source="clips"))


@pytest.mark.slow
def test_the_page_is_one_file_with_the_numbers_of_the_evaluation(run_dir: Path, without_ray) -> None:
    results = evaluate(settings_of(run_dir, EvaluateSettings))
    page = report(settings_of(run_dir, ReportSettings)).read_text()
    assert f"accuracy {results['seed-0']['accuracy']:.3f}" in page
    assert f"{results['seed-0']['mAP']:.4f}" in page
    assert page.count("<img") == 10  # clips, classes, confusion; no curves without a history
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    sources = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page)
    for section in ("Data", "Hardest clips", "Confusion matrix", "Curves and classes"):
        assert section in page
    assert page.count('class="card"') == 8


def test_before_any_training_the_page_shows_the_data_only(run_dir: Path) -> None:
    page = report(dataclasses.replace(settings_of(run_dir, ReportSettings), run_dir=run_dir / "nothing")).read_text()
    assert "<td>train</td>" in page
    assert "Hardest" not in page


def test_the_page_shows_clips_of_each_class_and_split_and_names_classes_without_test_clips(run_dir: Path) -> None:
    path = run_dir / "shards" / "index.json"
    index = read_hashed_json(path, "Index")
    for number, split in enumerate(index["splits"].values()):
        split["classes"] = [90 + number, 80 + number, 0]
    write_hashed_json(path, index)
    page = report(dataclasses.replace(settings_of(run_dir, ReportSettings), run_dir=run_dir / "nothing")).read_text()
    assert "Clips of each class and split" in page
    assert "<td>90</td><td>91</td>" in page
    assert "1 of 3 classes" in page
    assert "are without test clips" in page


def test_losses_and_confusion_of_a_known_table_are_correct() -> None:
    scores_NC = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]], np.float32)
    labels_NC = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    np.testing.assert_allclose(clip_losses(scores_NC, labels_NC, True), -np.log([0.8, 0.3, 0.6, 0.4]), rtol=1e-5)
    both = -(np.log(0.8) + 2 * np.log(0.9)) / 3
    assert clip_losses(scores_NC, labels_NC, False)[0] == pytest.approx(both, rel=1e-5)
    matrix_CC = confusion_matrix(scores_NC, labels_NC)
    np.testing.assert_array_equal(matrix_CC, [[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    pair = most_confused_pairs(matrix_CC, ("a", "b", "c"))
    assert [(one.true, one.taken_for, one.clips, one.of) for one in pair] == [("b", "a", 2, 2)]
