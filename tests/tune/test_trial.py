"""A trial's stored result: the keys of each status, and what counts as a result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ast_core.errors import UserError
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from pipeline.cli.stages import RunSettings
from tune.trial import Trial, TrialResult

METRICS = {"seed-0": {"mAP": 0.5, "mAUC": None}}


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial("wide", RunSettings(run_dir=tmp_path, shards=tmp_path / "shards"), "hash of the data", "")


def stored(trial: Trial) -> dict[str, object]:
    return read_hashed_json(trial.folder / "trial.json", "Trial")


def test_each_status_stores_its_own_keys_and_a_failed_trial_has_no_result(trial: Trial) -> None:
    common = {"identity": trial.identity, "variant": "wide", "seed": 0}
    trial.write_result("failed", reason="no room")
    assert stored(trial) == {**common, "status": "failed", "reason": "no room"}
    assert trial.load_result() is None
    trial.write_result("stopped", epochs=2, seconds=3.5)
    assert stored(trial) == {**common, "status": "stopped", "epochs": 2, "seconds": 3.5}
    assert trial.load_result() == TrialResult(trial.identity, "stopped", "wide", 0, epochs=2, seconds=3.5)
    trial.write_result("finished", metrics=METRICS, seconds=4.0)
    assert stored(trial) == {**common, "status": "finished", "metrics": METRICS, "seconds": 4.0}
    assert trial.load_result() == TrialResult(trial.identity, "finished", "wide", 0, METRICS, seconds=4.0)


def test_a_result_of_other_data_does_not_count(trial: Trial) -> None:
    trial.write_result("finished", metrics=METRICS, seconds=4.0)
    assert dataclasses.replace(trial, data_hash="other").load_result() is None


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("status", "paused", "status is 'paused'; give one of finished, stopped, failed"),
        ("seconds", "4", "seconds is '4'; give a finite number"),
        ("metrics", {"seed-0": {"mAP": True}}, "metrics.seed-0.mAP is True"),
        ("metrics", [], "metrics is \\[\\]; give an object"),
    ],
)
def test_a_result_with_a_wrong_value_is_refused_by_name(trial: Trial, key: str, value: object, says: str) -> None:
    trial.write_result("finished", metrics=METRICS, seconds=4.0)
    write_hashed_json(trial.folder / "trial.json", {**stored(trial), key: value})
    with pytest.raises(UserError, match=f"trial.json does not hold a trial's result.*{says}"):
        trial.load_result()
