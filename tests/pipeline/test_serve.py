"""The stage `serve` on Ray Serve: the same answers as the Python API, take-over, a killed replica, and SIGTERM."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bundles
import numpy as np
import pytest
from serve_clients import Clients, find_replicas
from served_app import ServedProcess, encode_wav, serve_process
from served_versions import MODEL, add_versions, set_champion
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import ast_core
from ast_core.errors import UserError
from pipeline.cli.stages import ServeSettings
from pipeline.serve import serve

WAVE = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
WAV = encode_wav(WAVE)
TOKEN = "token-of-the-tests"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store) -> str:
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, store: str) -> list[Path]:
    return add_versions(tmp_path_factory.mktemp("runs"), store, 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: str, versions: list[Path]) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("serve")
    tokens = folder / "tokens"
    tokens.write_text(f"tests {TOKEN} 64\n")
    tokens.chmod(0o600)
    flags = ["--model", f"models:/{MODEL}@champion", "--tracking", store, "--tokens", str(tokens)]
    with serve_process(folder / "log", *flags, "--refresh-s", "0.5", "--gpus", "no") as own:
        yield own


def wait_for(server: ServedProcess, pattern: str) -> None:
    deadline = time.monotonic() + 90
    while not re.search(pattern, text := server.get("/metrics").body.decode()):
        assert time.monotonic() < deadline, text
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_answers_equal_those_of_the_python_api(server: ServedProcess, versions: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(WAV)
    expected = ast_core.load(versions[0]).predict(str(tmp_path / "a.wav"))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post("/v1/predict", WAV, AUTHORIZED), range(32)))
    for answer in answers:
        assert answer.status == 200, answer.body
        assert answer.json["results"][0]["probabilities"] == pytest.approx(expected, abs=1e-6)
    assert server.post("/v1/predict", WAV).status == 401
    assert server.post("/v1/predict", b"no audio", AUTHORIZED).status == 422
    assert server.get("/").status == 200


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_live_audio_reaches_the_replica(server: ServedProcess, versions: list[Path]) -> None:
    samples_N = (WAVE * 32768).astype("<i2")
    address = f"ws://127.0.0.1:{server.port}/v1/live?hop_s=0.2&top=3"
    with connect(address, open_timeout=60, subprotocols=[Subprotocol(f"bearer.{TOKEN}")]) as socket:
        for piece in np.split(samples_N, 10):
            socket.send(piece.tobytes())
        socket.send("end")
        *windows, end = (json.loads(message) for message in socket)
    assert end == {"end": True, "seconds": 1.0, "windows": len(windows)}
    timeline = ast_core.load(versions[0]).timeline(samples_N, 16_000, hop_s=0.2, edges=True)
    ends_s = np.round(timeline.starts_s + timeline.window_s, 4).tolist()
    expected = dict(zip(ends_s, timeline.top(3), strict=True))
    for own in windows[:-1]:  # the last one ends with the sound
        assert own["probabilities"] == pytest.approx(expected[own["end_s"]], abs=1e-6)
    with connect(address, open_timeout=60) as socket:
        assert "wants a token" in socket.recv()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_new_champion_is_taken_over_without_a_failed_request(server: ServedProcess, store: str, measured) -> None:
    with Clients(server, 4, WAV, AUTHORIZED) as clients:
        wait_for(server, r"ast_serve_replicas 1")
        set_champion(store, 2)
        wait_for(server, r'ast_serve_model\{.*version="2"\} 1')
        time.sleep(0.5)
    assert set(clients.seen) == {"version 1", "version 2"}, clients.seen
    measured("R28", clients=4, **clients.seen, failed=clients.failed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_replica_fails_only_the_requests_that_it_had(server: ServedProcess, measured) -> None:
    (replica,) = find_replicas(server)
    with Clients(server, 4, WAV, AUTHORIZED) as clients:
        time.sleep(1)
        replica.kill()
        replica.wait()
        before, deadline = clients.seen["version 2"], time.monotonic() + 120
        while clients.seen["version 2"] < before + 20:
            assert time.monotonic() < deadline, clients.seen
            time.sleep(0.1)
    # Each client had a request at the replica, and another one may have waited to be accepted while its process ended.
    assert clients.failed <= 2 * 4, clients.seen
    refused_s = clients.refused[-1] - clients.refused[0]
    measured("R29", clients=4, killed=1, refused_s=refused_s, **clients.seen)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sigterm_lets_running_requests_end(server: ServedProcess, measured) -> None:
    long = encode_wav(np.tile(WAVE, 300))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, "/v1/events?hop_s=0.02", long, AUTHORIZED)
        wait_for(server, r"ast_serve_requests_running [1-9]")
        start_s = time.monotonic()
        assert server.stop() == 0, server.log.read_text()
        assert running.result().status == 200
        measured("R30", running=1, seconds=time.monotonic() - start_s)
    with pytest.raises(OSError, match="refused"):
        server.get("/readyz")
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"port": 70_000}, "--port is 70000"),
        ({"replicas": (2, 1)}, "replicas is 2 1"),
        ({"replicas": (0, 1)}, "replicas is 0 1"),
        ({"max_request_mib": 0}, "max-request-mib is 0"),
        ({"max_seconds": -1}, "max-seconds is -1"),
        ({"max_waiting": 0}, "max-waiting is 0"),
        ({"drain_s": -1}, "drain-s is -1"),
        ({"refresh_s": float("nan")}, "refresh-s is nan"),
        ({"cors": ("*",)}, "cors is '\\*'"),
        ({"tokens": Path("missing")}, "cannot be read"),
        ({"model": "missing"}, "missing"),
    ],
)
def test_a_wrong_setting_is_named_before_ray_starts(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    bundles.write_run(tmp_path, (0,))
    settings = {"model": str(tmp_path / "bundles" / "seed-0"), "port": 0, **changes}
    with pytest.raises(UserError, match=reason):
        serve(ServeSettings(**settings))


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    bundles.write_run(tmp_path, (0,))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} cannot be used: another process listens on it"):
            serve(ServeSettings(str(tmp_path / "bundles" / "seed-0"), port=port))
