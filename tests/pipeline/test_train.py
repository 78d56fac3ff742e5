"""Training under Ray Train reports errors in one sentence. Faults are tested in tests/reliability."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from conftest import NewStore
from launches import training_flags
from prepared import write_shards
from trainings import rows_of

from ast_core.errors import UserError
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import ReportSettings, TrainSettings
from pipeline.report import report
from pipeline.tracking.run_note import read_run_note
from pipeline.train import train

EARLY = ["--optim.early-stopping-epochs", "1", "--data.validation-split", "test", "--data.test-split", "train"]


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


@pytest.mark.slow
def test_training_that_stops_early_says_so_on_screen_in_mlflow_and_in_the_report(
    folder: Path, new_store: NewStore, without_ray, capsys
) -> None:
    new_store(folder)
    settings = parse_settings(TrainSettings, "", [*training_flags(folder, "run", 30), *EARLY])
    member = train(settings)
    last = len(rows_of(member))
    assert last < 30
    sentence = f"Stopped early after epoch {last} of 30: no validation score"
    assert f"seed-0: {sentence}" in capsys.readouterr().out
    metrics = mlflow.MlflowClient().get_run(read_run_note(member)).data.metrics
    assert metrics["last_epoch"] == last
    train(settings)
    assert "seed-0 is trained already." in capsys.readouterr().out
    page = report(
        ReportSettings(
            run_dir=folder / "run", shards=folder / "shards", experiment="test", tracking=settings.tracking,
            data=settings.data,
        )
    )  # fmt: skip
    assert sentence in page.read_text()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (EARLY[:2], "data.validation-split is empty"),
        (["--model.lora-rank", "4"], "model.init is scratch"),
        (["--optim.freeze-backbone-epochs", "-1"], "model.init is scratch"),
    ],
)
def test_keys_that_contradict_each_other_are_refused_by_the_command_line(
    tmp_path: Path, flags: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_settings(TrainSettings, "", [*training_flags(tmp_path, "run", 30), *flags])
