"""The served model answers each form of a request alike; the requests go through the parser of MLflow's server."""

from __future__ import annotations

import base64
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import soundfile
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle, write_bundle
from pipeline.serving import _load_pyfunc as load_old
from pipeline.tracking.pyfunc import Tagger
from pipeline.tracking.registry import REQUIREMENTS, list_requirements, serving_signature
from pipeline.tracking.serving_requests import RequestError

RATE_HZ = 16_000
HOSTILE = [
    "path", "error", "clip_error", "decided", "labels", "probabilities", "p:dog", "dog", "rain, heavy", "two\nlines",
    'a "quoted" name', "=1+1", "audio", unicodedata.normalize("NFC", "Zoé"), unicodedata.normalize("NFD", "Zoé"),
]  # fmt: skip
Ask = Callable[..., tuple[int, Any]]
SAMPLES = [(np.random.default_rng(seed).normal(0, 0.1, 9000) * 32768).astype(np.int16) for seed in range(2)]
"""16-bit samples of two recordings."""
WAVES = [(own / 32768).tolist() for own in SAMPLES]
RAGGED = [WAVES[0], WAVES[1][:8000]]


def _file(samples: np.ndarray) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, RATE_HZ, format="WAV")
    return content.getvalue()


FILES = [_file(own) for own in SAMPLES]
TEXTS = [base64.b64encode(own).decode() for own in FILES]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle whose classes have the names of columns."""
    folder = tmp_path_factory.mktemp("served") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "LABELS", HOSTILE)
        write_bundle(folder, [bundles.make_member(0, 0)], False, {})
    return folder


@pytest.fixture(scope="module")
def ask(bundle: Path) -> Ask:
    """Return a function that sends a body to the model as MLflow's server does: the status, and the rows or message."""
    mlflow.pyfunc.save_model(
        bundle.parent / "model", loader_module="pipeline.tracking.pyfunc", data_path=str(bundle),
        signature=serving_signature(), pip_requirements=[],
    )  # fmt: skip
    model = mlflow.pyfunc.load_model(str(bundle.parent / "model"))

    def send(body: dict[str, Any] | bytes, kind: str = "application/json") -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body)
        try:
            response = scoring_server.invocations(content, kind, model, model.metadata.get_input_schema())
        except MlflowException as error:
            return error.get_http_status_code(), json.loads(error.serialize_as_json())["message"]
        return response.status, json.loads(response.response)["predictions"]

    return send


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[dict[str, float]]:
    """Return the bundle's own probabilities of both recordings."""
    predictor = Predictor(Bundle.load(bundle))
    scores = [predictor.probabilities(np.array(wave, np.float32)) for wave in WAVES]
    return [dict(zip(HOSTILE, own.tolist(), strict=True)) for own in scores]


def _records(rows: Any) -> dict[str, Any]:
    return {"dataframe_records": rows}


def _parquet(**columns: Any) -> bytes:
    content = io.BytesIO()
    pd.DataFrame(columns).to_parquet(content)
    return content.getvalue()


BOTH_FILES = [{"audio": text} for text in TEXTS]
BOTH_WAVES = [{"waveform": wave, "sample_rate_hz": RATE_HZ} for wave in WAVES]
MIXED = [BOTH_FILES[0], BOTH_WAVES[1]]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_records(BOTH_FILES), id="records-files"),
        pytest.param(_records(BOTH_WAVES), id="records-waves"),
        pytest.param(_records(MIXED), id="records-mixed"),
        pytest.param(_records([{**MIXED[0], "waveform": None}, {**MIXED[1], "audio": None}]), id="records-nulls"),
        pytest.param(_records([{"audio": base64.encodebytes(own).decode()} for own in FILES]), id="base64-in-lines"),
        pytest.param(_records([{**row, "sample_rate_hz": "16000"} for row in BOTH_WAVES]), id="rate-as-text"),
        pytest.param({"dataframe_split": {"columns": ["audio"], "data": [[own] for own in TEXTS]}}, id="split"),
        pytest.param({"inputs": {"audio": TEXTS}}, id="inputs-files"),
        pytest.param({"inputs": {"audio": [[own] for own in TEXTS]}}, id="inputs-nested"),
        pytest.param({"inputs": BOTH_FILES}, id="inputs-rows"),
        pytest.param({"inputs": {"waveform": WAVES, "sample_rate_hz": RATE_HZ}}, id="inputs-waves"),
        pytest.param({"inputs": MIXED}, id="inputs-mixed"),
        pytest.param({"instances": BOTH_FILES}, id="instances-files"),
        pytest.param({"instances": {"audio": TEXTS}}, id="instances-columns"),
        pytest.param({"instances": BOTH_WAVES}, id="instances-waves"),
    ],
)
def test_each_form_of_a_request_has_the_bundles_own_answer(
    body: dict[str, Any], ask: Ask, expected: list[dict[str, float]]
) -> None:
    status, rows = ask(body)
    assert status == 200, rows
    assert [sorted(row) for row in rows] == [["error", "labels", "probabilities"]] * 2
    for row, own in zip(rows, expected, strict=True):
        assert row["error"] == ""
        assert list(row["probabilities"]) == HOSTILE
        assert row["probabilities"] == pytest.approx(own, abs=1e-6)
        assert row["labels"] == sorted(own, key=lambda name: -own[name])[:5]


@pytest.mark.parametrize("body", [{"inputs": {"audio": TEXTS[0]}}, {"inputs": {"waveform": WAVES[0]}}])
def test_a_single_recording_in_inputs_is_one_row(
    body: dict[str, Any], ask: Ask, expected: list[dict[str, float]]
) -> None:
    status, (row,) = ask(body)
    assert (status, row["error"]) == (200, "")
    assert row["probabilities"] == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("columns", [{"audio": FILES}, {"waveform": SAMPLES}, {"waveform": WAVES}])
def test_parquet_and_16_bit_samples_with_their_type_are_read(
    columns: dict[str, Any], ask: Ask, bundle: Path, expected: list[dict[str, float]]
) -> None:
    status, rows = ask(_parquet(**columns), "application/vnd.apache.parquet")
    assert status == 200, rows
    direct = Tagger(bundle).predict(pd.DataFrame(columns))
    for row, own, ours in zip(rows, expected, direct["probabilities"], strict=True):
        assert row["probabilities"] == pytest.approx(own, abs=1e-6)
        assert ours == pytest.approx(own, abs=1e-6)


NO_BASE64 = {
    "url-safe": base64.urlsafe_b64encode(bytes(range(248, 256)) * 9).decode(),
    "data-uri": "data:audio/wav;base64," + TEXTS[0],
    "no-padding": "QUJDRA",
    "other-alphabet": "é",
}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        *(
            pytest.param(_records([BOTH_FILES[0], {"audio": text}]), "audio of row 1 is not base64", id=name)
            for name, text in NO_BASE64.items()
        ),
        pytest.param(_records([{"audio": list(FILES[0][:99])}]), "of type int; send base64", id="bytes-as-numbers"),
        pytest.param(_records([{"waveform": SAMPLES[0].tolist()}]), "divide 16-bit samples by 32768", id="integers"),
        pytest.param({"inputs": {"waveform": [SAMPLES[0].tolist()]}}, "row 0 has integer", id="inputs-integers"),
        pytest.param({"instances": [{"waveform": SAMPLES[0].tolist()}]}, "row 0 has integer", id="instances-integers"),
        pytest.param(
            _records([{"waveform": SAMPLES[0].astype(float).tolist()}]), "row 0 has integer", id="integers-as-floats"
        ),
        pytest.param(_records([{"waveform": [[x] for x in WAVES[0]]}]), "the shape (9000, 1)", id="channels"),
        pytest.param(_records([{"waveform": TEXTS[0]}]), "is not a list of numbers", id="waveform-as-base64"),
        pytest.param(_records([{"waveform": [{}]}]), "is not a list of numbers", id="objects"),
        pytest.param(_records([{**BOTH_WAVES[0], "sample_rate_hz": 7}]), "sample_rate_hz of row 0 is", id="rate"),
        pytest.param(_records([{**BOTH_WAVES[0], "sample_rate_hz": "fast"}]), "'fast'; send a number", id="rate-word"),
        pytest.param(_records([BOTH_FILES[0], {**BOTH_FILES[0], **BOTH_WAVES[0]}]), "Row 1 has both", id="both"),
        pytest.param(_records([BOTH_FILES[0], {"audio": None}]), "Row 1 has neither", id="neither"),
        pytest.param({"instances": MIXED}, "dataframe_records", id="instances-mixed"),
        pytest.param({"inputs": TEXTS}, "The request has neither audio nor waveform. Send", id="no-column"),
        pytest.param({"instances": TEXTS}, "The request has neither audio nor waveform. Send", id="instances-bare"),
        pytest.param(_records([{"sound": TEXTS[0]}]), "neither audio nor waveform", id="other-column"),
        pytest.param(_records([]), "neither audio nor waveform", id="no-row"),
    ],
)
def test_a_row_that_is_no_recording_is_http_400_with_what_to_send(body: dict[str, Any], words: str, ask: Ask) -> None:
    status, message = ask(body)
    assert status == 400
    assert words in message
    assert len(message) < 500  # without the request itself


def test_instances_of_different_lengths_never_have_an_answer(ask: Ask) -> None:
    # MLflow's own parser refuses them before the model sees them.
    assert ask({"instances": [{"waveform": own} for own in RAGGED]})[0] == 400
    assert ask({"instances": [BOTH_FILES[0], *MIXED]})[0] == 400
    status, rows = ask(_records([{"waveform": own} for own in RAGGED]))
    assert (status, [row["error"] for row in rows]) == (200, ["", ""])


def test_a_broken_recording_has_an_error_and_the_others_their_answers(
    ask: Ask, expected: list[dict[str, float]]
) -> None:
    broken = [{"audio": ""}, {"audio": base64.b64encode(b"RIFF").decode()}, {"waveform": []}, {"waveform": [0.1, None]}]
    status, rows = ask(_records([BOTH_FILES[0], *broken, {"waveform": [0] * 9000}]))
    assert status == 200
    assert rows[0]["probabilities"] == pytest.approx(expected[0], abs=1e-6)
    words = ["", "empty", "decode", "no samples", "not finite", ""]
    for row, word in zip(rows, words, strict=True):
        assert word in row["error"]
        assert bool(row["error"]) == (row["labels"] is None) == (row["probabilities"] is None) == bool(word)


def test_the_former_loader_keeps_the_columns_that_old_signatures_promise(bundle: Path) -> None:
    table = load_old(str(bundle)).predict(pd.DataFrame({"audio": [FILES[0], b"RIFF"]}))
    assert set(table) == {*HOSTILE, "clip_error"}
    assert table["dog"][0] == pytest.approx(
        Tagger(bundle).predict(pd.DataFrame({"audio": FILES[:1]}))["probabilities"][0]["dog"]
    )
    assert (table["dog"][1], "decode" in table["clip_error"][1]) == (None, True)


def test_a_request_error_is_raised_in_python(bundle: Path) -> None:
    with pytest.raises(RequestError, match="neither audio nor waveform"):
        Tagger(bundle).predict(pd.DataFrame([{"sound": 1}]))


def test_a_registered_model_requires_ffmpeg_where_it_is_installed(monkeypatch) -> None:
    with_ffmpeg = {line.partition("==")[0] for line in list_requirements()}
    assert {*REQUIREMENTS, "av"} == with_ffmpeg
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert {line.partition("==")[0] for line in list_requirements()} == set(REQUIREMENTS)
