"""The WebSocket of a server: live audio has the probabilities of the timeline, with little lag; refusals say why."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_files import encode
from served_app import ServedApp, serve_app
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import ast_core
from pipeline.serving import live
from pipeline.serving.serve_options import ServeOptions

TOKEN = "0123456789abcdef"


def sound(seconds: float) -> np.ndarray:
    """Return noise whose loudness changes, as 16-bit samples."""
    rng = np.random.default_rng(0)
    loud_N = np.repeat(rng.uniform(0, 2, 64), int(seconds * 250))
    return (3000 * rng.normal(0, 1, len(loud_N)) * loud_N).clip(-32768, 32767).astype("<i2")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServedApp]:
    with serve_app(ServeOptions(str(folder), cors=("https://page.example",))) as own:
        yield own


def open_socket(server: ServedApp, query: str = "hop_s=0.2", **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/live?{query}", open_timeout=60, **options)


def read_all(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Return the messages until the WebSocket is closed, and the code."""
    found: list[dict[str, Any]] = []
    try:
        while True:
            found.append(json.loads(socket.recv(30)))
    except ConnectionClosed as error:
        return found, error.rcvd.code if error.rcvd else 0


def send_in_real_time(socket: ClientConnection, pieces: list[bytes], piece_s: float) -> None:
    """Send pieces when a microphone would have recorded them."""
    started_s = time.monotonic()
    for number, piece in enumerate(pieces, 1):
        time.sleep(max(0.0, started_s + number * piece_s - time.monotonic()))
        socket.send(piece)
    socket.send("end")


def test_live_audio_has_the_probabilities_of_the_timeline_while_it_comes(server: ServedApp, folder: Path) -> None:
    samples_N = sound(3)
    content, piece = samples_N.tobytes(), 2 * 800
    with open_socket(server, "hop_s=0.2&top=3") as socket:
        pieces = [content[place : place + piece] for place in range(0, len(content), piece)]
        thread = threading.Thread(target=send_in_real_time, args=(socket, pieces, 0.05))
        thread.start()
        (*windows, end), code = read_all(socket)
        thread.join()
    assert code == 1000
    assert end == {"end": True, "seconds": 3.0, "windows": len(windows)}
    model = ast_core.load(folder)
    timeline = model.timeline(samples_N, 16_000, hop_s=0.2, edges=True)
    expected = {
        round(end_s, 4): row for end_s, row in zip(timeline.starts_s + timeline.window_s, timeline.top(3), strict=True)
    }
    same = [(own["probabilities"], expected[own["end_s"]]) for own in windows if own["end_s"] in expected]
    assert len(same) >= len(windows) - 1 >= 13
    for own, other in same:
        assert own == pytest.approx(other, abs=1e-6)
    # A busy machine is slow, but results that wait for the end of the sound would be 1.5 s late.
    assert sorted(own["lag_s"] for own in windows)[len(windows) // 2] < 1


@pytest.mark.parametrize("form", ["ogg_opus", "webm_opus"])
def test_opus_has_the_windows_of_its_sound(server: ServedApp, form: str) -> None:
    wave_N = sound(2).astype(np.float32) / 32768
    content = encode(form.partition("_")[0], "libopus", wave_N, pipe=True)
    with open_socket(server, f"format={form}&hop_s=0.2") as socket:
        for place in range(0, len(content), 3000):
            socket.send(content[place : place + 3000])
        socket.send("end")
        (*windows, end), code = read_all(socket)
    assert code == 1000
    assert end["seconds"] == pytest.approx(2.0, abs=0.05)
    assert end["windows"] == len(windows) >= 8


def test_an_hour_that_is_sent_at_once_is_answered_in_order(server: ServedApp) -> None:
    content = sound(1).tobytes()
    with open_socket(server, "") as socket:  # the usual hop is longer than a window, and so it is a window
        thread = threading.Thread(target=lambda: [socket.send(content) for _ in range(60)] + [socket.send("end")])
        thread.start()
        (*windows, end), code = read_all(socket)
        thread.join()
    ends_s = [own["end_s"] for own in windows]
    assert (code, end["seconds"], end["windows"]) == (1000, 60.0, len(windows))
    assert ends_s == sorted(set(ends_s))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("format=mp3", "format is 'mp3'; give pcm_s16le, ogg_opus or webm_opus."),
        ("hop=1", "The query has 'hop', which is unknown"),
        ("hop_s=0.01", "hop_s is '0.01'; give a number of at least 0.1."),
        ("hop_s=nan", "hop_s is 'nan'"),
        ("hop_s=20", "give at most a window"),
        ("top=0", "top is '0'; give a whole number from 1 to 10000."),
        ("top=1.5", "top is '1.5'"),
        ("sample_rate_hz=12", "sample_rate_hz cannot be used: the sampling rate is 12 Hz"),
        ("version=3", "There is no version '3'"),
    ],
)
def test_a_wrong_query_is_refused_with_a_reason(server: ServedApp, query: str, sentence: str) -> None:
    with open_socket(server, query) as socket:
        ((message,), code) = read_all(socket)
    assert sentence in message["error"]
    assert code == 1008


def test_audio_that_cannot_be_used_is_refused_with_a_reason(server: ServedApp) -> None:
    with open_socket(server, "format=webm_opus&hop_s=0.2") as socket:
        with contextlib.suppress(ConnectionClosed):
            socket.send(np.random.default_rng(0).bytes(100_000))
            socket.send("end")
        ((message,), code) = read_all(socket)
    assert message["error"].startswith("The audio cannot be used (decode): FFmpeg: ")
    assert code == 1003
    content = encode("webm", "libopus", sound(4).astype(np.float32) / 32768, pipe=True)
    with open_socket(server, "format=webm_opus&hop_s=0.2") as socket:
        socket.send(content[: len(content) // 2] + bytes(500))  # the client goes on, and does not say `end`
        (*windows, message), code = read_all(socket)
    assert re.match(
        r"The audio cannot be used \(decode\): the decoder stopped at about [12]\.\d s: FFmpeg: 0x00 ", message["error"]
    )
    assert code == 1003
    assert len(windows) > 5
    with open_socket(server) as socket:
        socket.send(bytes(1 << 19))
        ((message,), code) = read_all(socket)
    assert message["error"].startswith("A message has 524288 bytes")
    assert code == 1009


def test_pages_of_other_servers_are_refused_unless_the_settings_name_them(server: ServedApp) -> None:
    for origin, allowed in [
        (f"http://127.0.0.1:{server.port}", True),
        ("https://page.example", True),
        ("https://other.example", False),
        ("null", False),
    ]:
        with open_socket(server, origin=origin) as socket:
            with contextlib.suppress(ConnectionClosed):  # before it sent everything
                socket.send(sound(1).tobytes()[:16_000])
                socket.send("end")
            messages, code = read_all(socket)
        assert (code == 1000) == allowed
        assert ("error" in messages[-1]) != allowed


def test_a_client_that_leaves_while_it_is_answered_is_no_failure(
    server: ServedApp, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        socket = open_socket(server, "hop_s=0.1")
        for _ in range(20):
            socket.send(sound(1).tobytes())
        socket.recv(30)
        socket.socket.close()
    deadline = time.monotonic() + 30
    while server.app.state.server.running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "failed" not in caplog.text


def test_a_token_is_taken_from_the_header_or_the_subprotocol(folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"client {TOKEN} 1\n")
    tokens.chmod(0o600)
    with serve_app(ServeOptions(str(folder), tokens=str(tokens))) as server:
        with open_socket(server) as socket:
            ((message,), code) = read_all(socket)
        assert (code, "wants a token" in message["error"]) == (1008, True)
        with open_socket(server, subprotocols=[f"bearer.{TOKEN}"], origin="https://any.example") as socket:
            assert socket.subprotocol == f"bearer.{TOKEN}"
            socket.send(bytes(16_000))
            socket.recv(30)
            with open_socket(server, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as second:
                ((message,), code) = read_all(second)
            assert (code, "its limit" in message["error"]) == (1008, True)
            socket.send("end")
            assert read_all(socket)[1] == 1000
        with open_socket(server, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
            socket.send(bytes(16_000))
            socket.send("end")
            assert read_all(socket)[1] == 1000


def read_live_metrics(server: ServedApp) -> dict[str, float]:
    lines = server.get("/metrics").body.decode().splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if line.startswith("ast_serve_live_")]
    return {name.removeprefix("ast_serve_live_"): float(value) for name, value in rows}


def test_sessions_are_counted_with_their_sound_lag_and_end(folder: Path) -> None:
    with serve_app(ServeOptions(str(folder))) as server:
        assert read_live_metrics(server) == {"sessions": 0}
        with open_socket(server) as socket:
            socket.send(sound(2).tobytes())
            socket.recv(30)
            assert read_live_metrics(server)["sessions"] == 1
            socket.send("end")
            messages, _ = read_all(socket)
        with open_socket(server) as socket:
            socket.send(b"odd")
            socket.send("end")
            assert read_all(socket)[1] == 1003
        with open_socket(server, "hop_s=20") as socket:
            assert read_all(socket)[1] == 1008
        with open_socket(server) as socket:
            socket.send(sound(1).tobytes())
            socket.recv(30)
        deadline = time.monotonic() + 30
        while (found := read_live_metrics(server)).get('sessions_total{reason="client_left"}') != 1:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
    assert found["sessions"] == 0
    assert found['sessions_total{reason="ended"}'] == 1
    assert found['sessions_total{reason="unusable_audio"}'] == 1
    assert found['sessions_total{reason="refused"}'] == 1
    assert found["seconds_total"] == pytest.approx(3 + 1 / 16_000)
    assert found["lag_seconds_count"] >= messages[-1]["windows"] > 5
    assert 0 < found["lag_seconds_sum"] < 60


def test_sessions_are_limited_and_one_that_ends_makes_room(server: ServedApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_SESSIONS", 1)
    with open_socket(server) as first:
        first.send(bytes(16_000))
        first.recv(30)
        with open_socket(server) as second:
            ((message,), code) = read_all(second)
        assert (code, message["error"]) == (1013, "The server has 1 live sessions, which is its limit; try later.")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with open_socket(server) as third:
            with contextlib.suppress(ConnectionClosed):  # before it sent everything
                third.send(bytes(16_000))
                third.send("end")
            if read_all(third)[1] == 1000:
                return
    pytest.fail("the session that was left goes on")
