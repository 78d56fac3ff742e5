"""Requests that are no requests: each is refused with a sentence, and the server goes on."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator

import bundles
import numpy as np
import pytest
from served_app import ServedApp, encode_form, encode_wav, serve_app

from pipeline.serving.serve_options import ServeOptions

MIB = 1 << 20
TOKEN = "token-of-the-tests"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
WAV = encode_wav(np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApp]:
    folder = tmp_path_factory.mktemp("run")
    bundles.write_run(folder)
    tokens = folder / "tokens"
    tokens.write_text(f"tests {TOKEN} 2\n")
    tokens.chmod(0o600)
    model = str(folder / "bundles" / "ensemble")
    with serve_app(ServeOptions(model, tokens=str(tokens), max_request_mib=1, cors=("https://a.example",))) as own:
        yield own


@pytest.fixture(autouse=True)
def serves_on(server: ServedApp) -> Iterator[None]:
    yield
    assert server.post("/v1/predict", WAV, AUTHORIZED).status == 200
    assert server.app.state.server.running == 0


JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b"", {}, "no recording"),
        (b"{", JSON, "not JSON"),
        (b"\xff\xfe", JSON, "not JSON"),
        (b"[" * 100_000, JSON, "not JSON"),
        (b"[]", JSON, "neither audio nor a list"),
        (b'{"files": []}', JSON, "neither audio nor a list"),
        (b'{"files": "a"}', JSON, "neither audio nor a list"),
        (b'{"files": [1]}', JSON, "Recording 0 has no text"),
        (b'{"audio": 5}', JSON, "no text in audio"),
        (b'{"audio": "UklG*"}', JSON, "not base64"),
        (b'{"audio": "data:audio/wav;base64,UklG"}', JSON, "not base64"),
        ('{"audio": "ü"}'.encode(), JSON, "not base64"),
        (b'{"audio": "UklG", "name": ["a"]}', JSON, "name of recording 0"),
        (json.dumps({"files": [{"audio": ""}] * 1001}).encode(), JSON, "at most 1000"),
        (b"--x--\r\n", FORM, "no file"),
        (b"nonsense", FORM, "form"),
        (b"--x\r\n\r\nabc\r\n--x--\r\n", FORM, "form"),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n', FORM, "no file"),
        (b"a", {"Content-Type": "multipart/form-data"}, "form"),
        (*encode_form([("a", WAV)], "audio"), "no file in a field named file"),
        (*encode_form([(str(n), b"") for n in range(1001)]), "form"),
    ],
)
def test_a_body_without_recordings_is_refused(
    server: ServedApp, body: bytes, headers: dict[str, str], reason: str
) -> None:
    answer = server.post("/v1/predict", body, {**headers, **AUTHORIZED})
    assert answer.status == 400, answer.body
    assert reason in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("predict?top=-1", "top"), ("predict?top=x", "top"), ("predict?top=99999999999999999999", "top"),
        ("events?threshold=0", "threshold"), ("events?threshold=nan", "threshold"), ("events?hop_s=0", "hop_s"),
        ("events?hop_s=inf", "hop_s"), ("events?hop_s=nan", "hop_s"), ("events?hop_s=1e-9", "hop"),
        ("events?hop_s=100", "hop_s"), ("events?release=2", "release"), ("events?min_s=-1", "min_s"),
        ("events?gap_s=inf", "gap_s"), ("events?overlap=1", "overlap"), ("events?timeline=maybe", "timeline"),
        ("embed", "member"), ("embed?member=seed-9", "member"), ("embed?member=seed-0&layer=99", "layer"),
        ("embed?member=seed-0&layer=x", "layer"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(server: ServedApp, path: str, name: str) -> None:
    answer = server.post(f"/v1/{path}", WAV, AUTHORIZED)
    assert answer.status == 422, answer.body
    assert name in answer.json["error"]


def test_requests_without_the_token_are_refused(server: ServedApp) -> None:
    for path in ("/v1/predict", "/v1/events", "/v1/embed"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = server.post(path, WAV, headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.json["error"]
    assert server.get("/v1/model").status == 401
    for path in ("/", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert server.get(path).status == 200


def test_too_large_a_body_is_refused_with_and_without_its_length(server: ServedApp) -> None:
    answer = server.post("/v1/predict", bytes(MIB + 1), AUTHORIZED)
    assert answer.status == 413
    assert "1 MiB" in answer.json["error"]
    with socket.create_connection(("127.0.0.1", server.port), 60) as client:
        lines = ["POST /v1/predict HTTP/1.1", "Host: a", f"Authorization: Bearer {TOKEN}", "Transfer-Encoding: chunked"]
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(17):
            client.sendall(chunk)
        assert client.recv(1000).startswith(b"HTTP/1.1 413")
    assert server.app.state.server.bodies._room == 8 * MIB


def test_unknown_paths_and_methods_are_named_in_json(server: ServedApp) -> None:
    for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/predict", 405), ("POST", "/healthz", 405)):
        answer = server.send(method, path, None)
        assert answer.status == status
        assert "/openapi.json" in answer.json["error"]
    assert server.get("/docs").status == 404


def test_only_the_named_origins_may_use_the_server(server: ServedApp) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = server.send("OPTIONS", "/v1/predict", None, {"Origin": "https://a.example", **asks})
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = server.send("OPTIONS", "/v1/predict", None, {"Origin": "https://b.example", **asks})
    assert "access-control-allow-origin" not in other.headers


def test_names_come_back_and_hurt_no_one(server: ServedApp) -> None:
    names = ["a" * 1000, "../../etc/passwd", "<script>", "\ud800", "\x00"]
    files = [{"name": name, "audio": ""} for name in names] + [{"audio": base64.b64encode(WAV).decode()}]
    answer = server.post("/v1/predict", {"files": files}, AUTHORIZED)
    assert answer.status == 200
    found = [own["name"] for own in answer.json["results"]]
    assert found == ["a" * 255, "../../etc/passwd", "<script>", "?", "\x00", "recording 5"]


def test_the_description_names_every_route_and_loads_nothing(server: ServedApp) -> None:
    described = server.get("/openapi.json").json
    assert {"/v1/predict", "/v1/events", "/v1/embed", "/v1/model", "/healthz", "/readyz", "/metrics"} <= set(
        described["paths"]
    )
    operation = described["paths"]["/v1/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "multipart/form-data", "application/octet-stream", "application/json",
    }  # fmt: skip
    assert {"200", "400", "401", "413", "422", "429", "503"} <= set(operation["responses"])


def test_requests_are_counted(server: ServedApp) -> None:
    server.post("/v1/predict", WAV, AUTHORIZED)
    text = server.get("/metrics").body.decode()
    assert 'ast_serve_requests_total{route="/v1/predict",status="200"}' in text
    assert 'ast_serve_request_seconds_bucket{le="+Inf",route="/v1/predict"}' in text
    assert "ast_serve_windows_total" in text
    assert TOKEN not in text
