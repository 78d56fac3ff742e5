"""Training under Ray Train reports errors in one sentence. Faults are tested in tests/reliability."""

from __future__ import annotations

from pathlib import Path

import pytest
from launches import training_flags
from prepared import write_shards

from ast_core.errors import UserError
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.train import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    return tmp_path


@pytest.mark.long  # in the short form, a trial of tests/tune/test_search.py fails so
@pytest.mark.timeout(240)
def test_a_loss_that_is_not_finite_is_reported_in_one_sentence(folder: Path, ray_session) -> None:
    write_shards(folder / "shards", {"train": 42, "test": 21}, broken=("train-7",))
    with pytest.raises(UserError, match=r"Step \d+ of seed-0 is not finite.*train-7\b") as caught:
        train(
            parse_settings(
                TrainSettings, "", [*training_flags(folder, "nan", 30), "--data.mean", "-6", "--data.std", "4"]
            )
        )
    assert "Traceback" not in str(caught.value)


def test_without_shards_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepare"):
        train(parse_settings(TrainSettings, "", training_flags(tmp_path, "none", 30)))
