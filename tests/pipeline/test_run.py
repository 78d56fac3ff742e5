"""The main job from recordings to predictions, as the notebook of `examples/` runs it, with broken files in it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import NewStore
from main_jobs import MainJob

from ast_core.audio.waveform import load_waveform
from ast_core.errors import UserError
from ast_core.evaluation.prediction_table import to_json_rows
from ast_core.evaluation.predictor import Predictor
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from ast_core.weights.bundle import Bundle
from pipeline.cli.stages import EvaluateSettings, PredictSettings
from pipeline.evaluate import evaluate
from pipeline.predict import predict

MODEL = "models:/ast-own-recordings@champion"


@pytest.fixture
def folder(tmp_path: Path, save_tone) -> Path:
    save_tone(tmp_path / "clips" / "test" / "high" / "0.wav")
    (tmp_path / "clips" / "test" / "high" / "text.wav").write_text("not audio")
    return tmp_path


@pytest.mark.timeout(400)
def test_the_main_job_goes_from_recordings_to_predictions(main_job: MainJob) -> None:
    run, shown = main_job.run, main_job.cells["run"]
    index = json.loads((run / "shards" / "index.json").read_text())
    books = {s: [b[k] for k in ("listed", "kept", "rejected", "missing")] for s, b in index["splits"].items()}
    assert books == {"train": [26, 24, 2, 0], "validation": [9, 9, 0, 0], "test": [9, 9, 0, 0]}
    rejects = pq.read_table(run / "shards" / "rejects.parquet").to_pylist()
    assert {Path(row["path"]).name: row["reason"] for row in rejects}["empty.wav"] == "the file is empty"
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert list(summary) == ["ensemble", "seed-0", "seed-0-last", "seed-1", "seed-1-last"]
    assert summary["ensemble"]["mAP"] > 0.6  # chance is a third
    for name in summary:  # each stage counts what the stage before it kept
        assert len(pq.read_table(run / "evaluation" / f"{name}-scores.parquet")) == 9
    assert "Test" in shown
    assert f"ast-pipeline predict FILE --model {MODEL}" in shown
    page = (run / "report.html").read_text()
    assert f"accuracy {summary['ensemble']['accuracy']:.3f}" in page
    assert "the file is empty" in page


def test_registry_bundle_and_mlflows_loader_predict_the_same_with_rows_for_broken_files(main_job: MainJob) -> None:
    clips = main_job.folder / "recordings" / "test"
    (clips / "high" / "text.wav").write_text("not audio")
    output = main_job.folder / "out.csv"
    settings = PredictSettings(inputs=(str(clips),), model=MODEL, tracking=main_job.tracking, output=str(output))
    scores = predict(settings).probabilities
    predictor = Predictor(Bundle.load(main_job.run / "bundles" / "ensemble"))
    paths = sorted(clips.rglob("[0-9].wav"))
    assert sorted(scores) == [str(path) for path in paths]
    mlflow.set_tracking_uri(main_job.tracking)
    served = mlflow.pyfunc.load_model(MODEL)
    table = served.predict({"audio": [path.read_bytes() for path in paths]})
    for number, path in enumerate(paths):
        own_C = predictor.probabilities(load_waveform(path, 16_000))
        assert np.abs(scores[str(path)] - own_C).max() < 1e-6
        assert list(table["probabilities"][number]) == list(predictor.bundle.labels)
        assert np.abs(np.array(list(table["probabilities"][number].values())) - own_C).max() < 1e-6
    with output.open() as file:
        rows = {Path(row["path"]).name: row["error"] for row in csv.DictReader(file)}
    assert "decode" in rows["text.wav"]
    assert sorted(rows) == ["0.wav", "1.wav", "2.wav", "text.wav"]


def test_predict_takes_any_length_rate_and_number_of_channels(folder: Path, trained_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = folder / "inputs"
    inputs.mkdir()
    for name, rate, shape in (("minute.flac", 8000, (8000 * 60,)), ("stereo.wav", 48_000, (30_000, 2))):
        soundfile.write(inputs / name, rng.normal(0, 0.1, shape), rate)
    (inputs / "notes.txt").write_text("not searched for")
    for suffix in (".json", ".parquet"):
        predict(PredictSettings(inputs=(str(inputs),), model=str(trained_bundle), output=str(folder / f"out{suffix}")))
    rows = json.loads((folder / "out.json").read_text())
    assert [Path(row["path"]).name for row in rows] == ["minute.flac", "stereo.wav"]
    assert rows == to_json_rows(pq.read_table(folder / "out.parquet"))


def test_predict_refuses_in_one_sentence(folder: Path, trained_bundle: Path) -> None:
    bundle = str(trained_bundle)
    with pytest.raises(UserError, match="does not exist; give a file or a folder"):
        predict(PredictSettings(inputs=(str(folder / "nothing"),), model=bundle))
    with pytest.raises(UserError, match=r"must end in .csv, .json or .parquet"):
        predict(PredictSettings(inputs=(str(folder / "clips"),), model=bundle, output=str(folder / "out.xlsx")))
    with pytest.raises(UserError, match="No file could be used"):
        predict(PredictSettings(inputs=(str(folder / "clips" / "test" / "high" / "text.wav"),), model=bundle))
    with pytest.raises(UserError, match="missing"):
        predict(PredictSettings(inputs=(str(folder / "clips"),), model=str(folder)))


def test_evaluate_refuses_shards_of_other_labels(trained_bundle: Path, new_store: NewStore) -> None:
    run_dir = trained_bundle.parents[1]
    path = run_dir / "shards" / "index.json"
    write_hashed_json(path, read_hashed_json(path, "index") | {"labels": ["low", "high", "middle"]})
    with pytest.raises(UserError, match=r"label 1: 'middle', not 'high'"):
        evaluate(EvaluateSettings(run_dir=run_dir, shards=run_dir / "shards", tracking=new_store(run_dir)))
