"""The routes of a server in plain uvicorn, compared with the Python API."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bundles
import numpy as np
import pytest
from served_app import ServedApp, encode_form, encode_wav, serve_app

import ast_core
from pipeline.serving.serve_options import ServeOptions


def sound(seed: int, seconds: float) -> np.ndarray:
    """Return noise whose loudness changes, so that windows differ."""
    rng = np.random.default_rng(seed)
    wave_N = rng.normal(0, 0.1, int(seconds * 16_000)) * np.repeat(rng.uniform(0, 2, 64), int(seconds * 250))
    return wave_N.astype(np.float32)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServedApp]:
    with serve_app(ServeOptions(str(folder), max_seconds=30, max_request_mib=2)) as own:
        yield own


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several formats and lengths; the first is shorter than a window of 0.33 s."""
    folder = tmp_path_factory.mktemp("audio")
    kinds = [(0.1, "WAV"), (1.5, "FLAC"), (4.0, "WAV"), (12.0, "OGG")]
    paths = []
    for number, (seconds, kind) in enumerate(kinds):
        path = folder / f"{number}.{kind.lower()}"
        path.write_bytes(encode_wav(sound(number, 4 * seconds)[: int(16_000 * seconds)], 16_000, kind))
        paths.append(path)
    return paths


def test_predictions_equal_those_of_the_python_api(server: ServedApp, folder: Path, recordings: list[Path]) -> None:
    model = ast_core.load(folder)
    for path in recordings:
        answer = server.post("/v1/predict?top=2", path.read_bytes())
        assert answer.status == 200, answer.body
        (result,) = answer.json["results"]
        expected = model.predict(str(path))
        assert result["labels"] == list(expected)[:2]
        assert result["probabilities"] == pytest.approx(expected, abs=1e-6)
        assert answer.json["model"] == {"name": "ensemble", "version": None, "digest": model.bundle.digest}


def test_concurrent_requests_get_their_own_answers(server: ServedApp, folder: Path, recordings: list[Path]) -> None:
    model = ast_core.load(folder)
    expected = {path: model.predict(str(path)) for path in recordings}
    asked = recordings * 12
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda path: server.post("/v1/predict", path.read_bytes()), asked))
    for path, answer in zip(asked, answers, strict=True):
        assert answer.json["results"][0]["probabilities"] == pytest.approx(expected[path], abs=1e-6)


@pytest.mark.parametrize("hop_s", [None, 0.1, 0.25])
def test_events_and_timeline_equal_those_of_the_python_api(
    server: ServedApp, folder: Path, recordings: list[Path], hop_s: float | None
) -> None:
    model = ast_core.load(folder)
    for path in recordings[1:3]:
        timeline = model.timeline(str(path), hop_s=hop_s, edges=True)
        threshold = float(np.median(timeline.probabilities))
        query = f"?threshold={threshold}&min_s=0.05&gap_s=0.1&overlap=0.1&release=0.9" + (
            f"&hop_s={hop_s}" if hop_s else ""
        )
        answer = server.post(f"/v1/events{query}&timeline=true", path.read_bytes())
        assert answer.status == 200, answer.body
        (result,) = answer.json["results"]
        assert result["timeline"]["starts_s"] == pytest.approx(timeline.starts_s)
        assert result["timeline"]["ends_s"] == pytest.approx(timeline.ends_s)
        assert np.array(result["timeline"]["probabilities"]) == pytest.approx(timeline.probabilities, abs=1e-6)
        assert result["timeline"]["thresholds"] == [0.5] * len(timeline.labels)
        expected = timeline.events(threshold, min_s=0.05, gap_s=0.1, overlap=0.1, release=0.9)
        assert len(result["events"]) == len(expected) > 0
        for own, event in zip(result["events"], expected, strict=True):
            assert own["label"] == event.label
            assert own["start_s"] == pytest.approx(event.start_s, abs=1e-6)
            assert own["end_s"] == pytest.approx(event.end_s, abs=1e-6)
            assert own["peak"] == pytest.approx(event.peak, abs=1e-6)


def test_a_calibrated_model_answers_with_calibrated_probabilities_and_its_thresholds(
    folder: Path, recordings: list[Path], tmp_path: Path
) -> None:
    own = bundles.calibrate_copy(folder, tmp_path / "calibrated")
    timeline = ast_core.load(own).timeline(str(recordings[2]), hop_s=0.1, edges=True)
    assert timeline.decisions is not None
    with serve_app(ServeOptions(str(own))) as server:
        answer = server.post("/v1/events?hop_s=0.1&timeline=true", recordings[2].read_bytes())
    (result,) = answer.json["results"]
    assert result["timeline"]["thresholds"] == list(timeline.decisions.threshold_C)
    found_WC = np.array(result["timeline"]["probabilities"])
    assert found_WC == pytest.approx(timeline.decisions.calibrated(timeline.probabilities), abs=1e-6)
    assert np.abs(found_WC - timeline.probabilities).max() > 0.1
    expected = [(event.label, pytest.approx(event.start_s), pytest.approx(event.peak)) for event in timeline.events()]
    assert len(expected) > 0
    assert [(event["label"], event["start_s"], event["peak"]) for event in result["events"]] == expected


def test_embeddings_equal_those_of_the_python_api(server: ServedApp, folder: Path, recordings: list[Path]) -> None:
    model = ast_core.load(folder)
    for layer in (None, 1):
        query = f"?member=seed-1{'' if layer is None else f'&layer={layer}'}"
        answer = server.post(f"/v1/embed{query}", recordings[2].read_bytes())
        (result,) = answer.json["results"]
        expected = model.embed(str(recordings[2]), member="seed-1", layer=layer).clip
        assert np.array(result["embedding"]) == pytest.approx(expected, abs=1e-6)
        assert result["member"] == "seed-1"
        assert result["layer"] == (layer or model.bundle.members[0].model.find_layer(None))


def test_forms_bytes_and_json_have_the_same_results(server: ServedApp, recordings: list[Path]) -> None:
    contents = [path.read_bytes() for path in recordings[1:3]]
    raw = [server.post("/v1/predict", content).json["results"][0] for content in contents]
    body, headers = encode_form([("Zoé.flac", contents[0]), ("b.wav", contents[1])])
    form = server.post("/v1/predict", body, headers).json["results"]
    coded = [base64.b64encode(content).decode() for content in contents]
    several = server.post("/v1/predict", {"files": [{"name": "a", "audio": coded[0]}, {"audio": coded[1]}]}).json
    single = server.post("/v1/predict", {"audio": coded[0]}).json["results"]
    assert [own["name"] for own in form] == ["Zoé.flac", "b.wav"]
    assert [own["name"] for own in several["results"]] == ["a", "recording 1"]
    assert single[0]["name"] == raw[0]["name"] == "recording"
    for found in (form, several["results"]):
        for own, expected in zip(found, raw, strict=True):
            assert own["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
            assert own["duration_s"] == expected["duration_s"]


def test_broken_recordings_have_their_reason(server: ServedApp, recordings: list[Path]) -> None:
    good = recordings[1].read_bytes()
    alone = server.post("/v1/predict", b"no audio at all")
    assert alone.status == 422
    assert "decode: " in alone.json["error"]
    body, headers = encode_form([("good", good), ("cut", recordings[2].read_bytes()[:3000]), ("empty", b"")])
    mixed = server.post("/v1/predict", body, headers)
    assert mixed.status == 200
    good_result, cut, empty = mixed.json["results"]
    assert good_result["error"] is None
    assert cut["error"].startswith("decode: ")
    assert cut["probabilities"] is None
    assert empty["error"] == "read: the file is empty"
    body, headers = encode_form([("a", b"x"), ("b", b"")])
    assert server.post("/v1/events", body, headers).status == 422
    long = server.post("/v1/predict", encode_wav(np.zeros(31 * 8_000, np.float32), 8_000))
    assert long.status == 422
    assert "longer than 30 s" in long.json["error"]


def test_the_model_is_described(server: ServedApp, folder: Path) -> None:
    found = server.get("/v1/model").json
    assert found["labels"] == bundles.LABELS
    assert found["members"] == ["seed-0", "seed-1"]
    assert found["window_s"] == pytest.approx(ast_core.load(folder).window_s)
    assert found["versions"] == []
    for path in ("/healthz", "/readyz"):
        assert server.get(path).json == {"status": "ok"}
