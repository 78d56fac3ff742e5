"""Two replicas behind Ray Serve's proxy: equal answers, live audio, a killed replica, and SIGTERM."""

from __future__ import annotations

import json
import time
from pathlib import Path

import bundles
import numpy as np
import pytest
from serve_clients import Clients, find_replicas
from served_app import encode_wav, serve_process
from websockets.sync.client import connect

import ast_core

WAVE = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
WAV = encode_wav(WAVE)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_other_replica_answers_while_one_is_started_again(tmp_path: Path, measured) -> None:
    bundles.write_run(tmp_path, (0,))
    folder = tmp_path / "bundles" / "seed-0"
    (tmp_path / "a.wav").write_bytes(WAV)
    expected = ast_core.load(folder).predict(str(tmp_path / "a.wav"))
    flags = ["--model", str(folder), "--replicas", "2", "2", "--gpus", "no"]
    with serve_process(tmp_path / "log", *flags) as server:
        (result,) = server.post("/v1/predict", WAV).json["results"]
        assert result["probabilities"] == pytest.approx(expected, abs=1e-6)
        with connect(f"ws://127.0.0.1:{server.port}/v1/live?hop_s=0.2", open_timeout=60) as socket:
            socket.send((WAVE * 32768).astype("<i2").tobytes())
            socket.send("end")
            *windows, end = (json.loads(message) for message in socket)
        assert end == {"end": True, "seconds": 1.0, "windows": len(windows)}
        one, other = find_replicas(server)
        with Clients(server, 4, WAV, {}) as clients:
            time.sleep(1)
            one.kill()
            one.wait()
            killed_s = time.monotonic()
            before, deadline = clients.seen["version None"], killed_s + 60
            while clients.seen["version None"] < before + 8:
                assert time.monotonic() < deadline, clients.seen
                time.sleep(0.05)
            answered_s = time.monotonic() - killed_s
        assert other.is_running()
        assert clients.failed <= 4, clients.seen  # each client had one request, at either replica
        assert not clients.refused
        measured("R29", replicas=2, clients=4, killed=1, answered_after_s=answered_s, failed=clients.failed)
        assert server.stop() == 0, server.log.read_text()
