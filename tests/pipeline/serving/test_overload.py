"""A server with too many requests, one that starts, and one that is being stopped: 503 with Retry-After."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bundles
import numpy as np
import pytest
from served_app import ServedApp, encode_wav, serve_app

from pipeline.serving.batching import window_queue
from pipeline.serving.model_store import ModelStore
from pipeline.serving.serve_options import ServeOptions

WAV = encode_wav(np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32))


@pytest.fixture
def model(tmp_path: Path) -> str:
    bundles.write_run(tmp_path, (0,))
    return str(tmp_path / "bundles" / "seed-0")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold every batch until the event is set."""
    go, take = threading.Event(), window_queue.WindowQueue._take

    def take_later(self: window_queue.WindowQueue) -> object:
        batch = take(self)
        assert go.wait(60)
        return batch

    monkeypatch.setattr(window_queue.WindowQueue, "_take", take_later)
    go.set()
    return go


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(server: ServedApp, count: int, pool: ThreadPoolExecutor) -> list[object]:
    """Send requests, and return once all of them are in the server."""
    futures = [pool.submit(server.post, "/v1/predict", WAV) for _ in range(count)]
    wait_until(lambda: server.app.state.server.running == count)
    return futures


def test_more_requests_than_wanted_are_refused_at_once(model: str, gate: threading.Event) -> None:
    with serve_app(ServeOptions(model, max_waiting=3)) as server, ThreadPoolExecutor(8) as pool:
        gate.clear()
        asked = ask(server, 3, pool)
        refused = server.post("/v1/predict", WAV)
        gate.set()
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert [own.result(60).status for own in asked] == [200] * 3
        assert server.post("/v1/predict", WAV).status == 200


def test_a_draining_server_answers_what_runs_and_refuses_the_rest(model: str, gate: threading.Event) -> None:
    with serve_app(ServeOptions(model)) as server, ThreadPoolExecutor(8) as pool:
        gate.clear()
        asked = ask(server, 2, pool)
        server.app.state.server.draining = True
        for path in ("/", "/readyz"):
            assert server.get(path).status == 503
        assert server.get("/healthz").status == 200
        refused = server.post("/v1/predict", WAV)
        gate.set()
        assert refused.status == 503
        assert "being stopped" in refused.json["error"]
        assert [own.result(60).status for own in asked] == [200] * 2


def test_a_server_is_ready_only_after_a_prediction(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    go, start = threading.Event(), ModelStore.start

    def start_later(self: ModelStore) -> None:
        assert go.wait(60)
        start(self)

    monkeypatch.setattr(ModelStore, "start", start_later)
    with serve_app(ServeOptions(model), wait=False) as server:
        for path in ("/", "/readyz"):
            answer = server.get(path)
            assert answer.status == 503
            assert "retry-after" in answer.headers
        assert server.get("/healthz").status == 200
        assert server.post("/v1/predict", WAV).status == 503
        go.set()
        wait_until(lambda: server.get("/readyz").status == 200)
        assert server.post("/v1/predict", WAV).status == 200


def test_a_model_that_cannot_be_loaded_leaves_the_server_not_ready(tmp_path: Path) -> None:
    with serve_app(ServeOptions(str(tmp_path / "missing")), wait=False) as server:
        time.sleep(0.5)
        assert server.get("/readyz").status == 503
