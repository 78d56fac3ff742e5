"""Timelines and attention pictures that predict writes, and the same values from Python."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import bundles
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import soundfile
from conftest import SaveTone
from matplotlib.image import imread
from prepared import FRONT_END, LABELS

import ast_core
from ast_core.errors import ClipError, UserError
from ast_core.evaluation.prediction_table import classes_of
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle, write_bundle
from pipeline.cli.stages import PredictSettings
from pipeline.predict import predict


def test_timeline_and_attention_are_written_for_each_good_file(
    tmp_path: Path, save_tone: SaveTone, trained_bundle: Path
) -> None:
    save_tone(tmp_path / "in" / "long.wav", seconds=3.0)
    save_tone(tmp_path / "in" / "short.wav", seconds=0.1)
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF")
    scores = predict(
        PredictSettings(
            inputs=(str(tmp_path / "in"),),
            model=str(trained_bundle),
            timeline=tmp_path / "times",
            hop_s=0.25,
            attention=tmp_path / "attention",
        )
    ).probabilities
    assert {Path(path).name for path in scores} == {"long.wav", "short.wav"}
    table = pyarrow.csv.read_csv(tmp_path / "times" / "long.wav.csv").to_pydict()
    assert list(table) == ["path", "start_s", "end_s", "error", "labels", *(f"p:{label}" for label in LABELS)]
    window_s = FRONT_END.target_frames / 100
    assert set(table["path"]) == {str(tmp_path / "in" / "long.wav")}
    assert table["end_s"] == pytest.approx([min(start + 0.335, 3.0) for start in table["start_s"]], abs=1e-6)
    assert table["start_s"] == [0.25 * n for n in range(len(table["start_s"]))]
    assert table["start_s"][-1] + window_s / 2 <= 3.0 < table["start_s"][-1] + 0.25 + window_s
    assert len(pyarrow.csv.read_csv(tmp_path / "times" / "short.wav.csv")) == 1
    for folder in ("times", "attention"):
        for name in ("long.wav.png", "short.wav.png"):
            picture = imread(tmp_path / folder / name)
            assert picture.std() > 0.05
    assert not list(tmp_path.rglob("broken.wav.*"))


def test_recordings_of_the_same_name_keep_a_timeline_each(
    tmp_path: Path, save_tone: SaveTone, trained_bundle: Path
) -> None:
    for name in ("a/x.wav", "b/x.wav", "b/y.wav"):
        save_tone(tmp_path / "in" / name, seconds=0.5)
    inputs = (str(tmp_path / "in" / "a"), str(tmp_path / "in" / "a" / ".." / "b"))
    predict(PredictSettings(inputs=inputs, model=str(trained_bundle), timeline=tmp_path / "times"))
    written = {str(path.relative_to(tmp_path / "times")) for path in (tmp_path / "times").rglob("*.csv")}
    assert written == {"a/x.wav.csv", "b/x.wav.csv", "y.wav.csv"}


def test_a_timeline_has_the_clip_level_probabilities_of_each_window(trained_bundle: Path) -> None:
    predictor = Predictor(Bundle.load(trained_bundle))
    wave_N = np.random.default_rng(1).normal(0, 0.1, 16_000).astype(np.float32)
    times_s, scores_WC = predictor.timeline(wave_N, 0.1)
    # The frames of a window come from its own samples, whose mean differs from the recording's.
    samples = (FRONT_END.target_frames - 1) * 160 + 400
    for start_s, scores_C in zip(times_s[:6], scores_WC, strict=False):
        first = round(start_s * 16_000)
        alone_C = predictor.probabilities(wave_N[first : first + samples])
        assert np.abs(alone_C - scores_C).max() < 1e-6


def test_a_timeline_is_refused_for_mixed_front_ends_short_hops_and_short_clips(trained_bundle: Path) -> None:
    bundle = Bundle.load(trained_bundle)
    other = dataclasses.replace(bundle.members[0], front_end=dataclasses.replace(FRONT_END, window="hamming"))
    both = Predictor(dataclasses.replace(bundle, members=(bundle.members[0], other)))
    with pytest.raises(UserError, match="members of one front end"):
        both.timeline(np.zeros(16_000, np.float32), 1.0)
    with pytest.raises(UserError, match="less than one frame"):
        Predictor(bundle).timeline(np.zeros(16_000, np.float32), 0.001)
    with pytest.raises(ClipError, match="less than one window"):
        Predictor(bundle).timeline(np.zeros(100, np.float32), 1.0)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_output_has_one_schema_whatever_the_classes_are_called(
    tmp_path: Path, save_tone: SaveTone, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    classes = ["path", "error", "labels"]
    monkeypatch.setattr(bundles, "LABELS", classes)
    write_bundle(tmp_path / "bundle", [bundles.make_member(0, 0)], False, {})
    good = save_tone(tmp_path / "in" / "good.wav", seconds=2.0)
    (tmp_path / "in" / "empty.wav").touch()
    output = tmp_path / f"out.{suffix}"
    settings = PredictSettings(
        inputs=(str(tmp_path / "in"),), model=str(tmp_path / "bundle"), output=str(output), top_k=2
    )
    scores_C = predict(settings).probabilities[str(good)]
    if suffix == "json":
        refused, row = json.loads(output.read_text())
        labels, probabilities = row["labels"], [row["probabilities"][name] for name in classes]
    elif suffix == "parquet":
        table = pyarrow.parquet.read_table(output)
        assert classes_of(table.schema) == tuple(classes)
        refused, row = table.to_pylist()
        labels, probabilities = row["labels"], row["probabilities"]
    else:
        refused, row = pyarrow.csv.read_csv(output).to_pylist()
        labels, probabilities = json.loads(row["labels"]), [row[f"p:{name}"] for name in classes]
    assert (refused["path"], "empty" in refused["error"]) == (str(tmp_path / "in" / "empty.wav"), True)
    assert (row["path"], row["error"], row["start_s"], row["end_s"]) == (str(good), "", 0.0, 2.0)
    assert labels == [classes[c] for c in np.argsort(-scores_C)[:2]]
    assert probabilities == pytest.approx(scores_C.tolist(), abs=1e-6)


def test_python_predicts_exactly_what_the_stage_predicts(tmp_path: Path, save_tone: SaveTone) -> None:
    bundles.write_run(tmp_path / "run")
    model, recordings = tmp_path / "run" / "bundles" / "ensemble", tmp_path / "in"
    save_tone(recordings / "long.wav", seconds=9.0)
    save_tone(recordings / "short.wav", seconds=0.1)
    stereo_N2 = np.random.default_rng(0).normal(0, 0.1, (44_100, 2))
    soundfile.write(recordings / "stereo.flac", stereo_N2, 44_100)
    soundfile.write(recordings / "low.ogg", stereo_N2[:, 0], 8_000)
    output, times = tmp_path / "out.parquet", tmp_path / "times"
    settings = PredictSettings(
        inputs=(str(recordings),), model=str(model), output=str(output), timeline=times, hop_s=0.25, gpus="no"
    )
    scores = predict(settings).probabilities
    python = ast_core.load(model, device="cpu")
    for row in pyarrow.parquet.read_table(output).to_pylist():
        found = python.predict(row["path"])
        assert found == dict(zip(python.labels, row["probabilities"], strict=True))
        assert found == dict(zip(python.labels, scores[row["path"]].tolist(), strict=True))
        assert list(found)[: len(row["labels"])] == row["labels"]
        written = pyarrow.csv.read_csv(times / f"{Path(row['path']).name}.csv").to_pydict()
        timeline = python.timeline(row["path"], hop_s=0.25)
        assert (timeline.starts_s.tolist(), timeline.ends_s.tolist()) == (written["start_s"], written["end_s"])
        columns = np.array([written[f"p:{label}"] for label in python.labels], np.float32).T
        assert np.array_equal(timeline.probabilities, columns)
