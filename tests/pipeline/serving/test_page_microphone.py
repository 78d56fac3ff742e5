"""The microphone on the page, with the real application and with a server that the test plays."""

from __future__ import annotations

import json

import bundles
import numpy as np
import pytest
from browser import ELSEWHERE, Visit, visit
from listening_page import show_time
from playwright.sync_api import Browser, WebSocketRoute
from served_app import ServedApp

pytestmark = pytest.mark.slow  # a browser
RECORD = """async () => {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const recorder = new MediaRecorder(stream, { mimeType: "audio/webm;codecs=opus" });
    const socket = new WebSocket(`ws://${location.host}/v1/live?format=webm_opus&hop_s=0.2`);
    const answers = [];
    socket.onmessage = (event) => answers.push(JSON.parse(event.data));
    await new Promise((done) => { socket.onopen = done; });
    recorder.ondataavailable = (event) => socket.send(event.data);
    recorder.start(100);
    await new Promise((done) => { setTimeout(done, 2000); });
    const stopped = new Promise((done) => { recorder.onstop = done; });
    const closed = new Promise((done) => { socket.onclose = done; });
    recorder.stop();
    await stopped;
    socket.send("end");
    return [answers, (await closed).code];
}"""
"""Send two seconds of a browser's own recorder to the model while it records; return the answers and the code."""


class LiveServer:
    """The server's side of a live session: it answers four times a second of sound.

    Args:
        label: label whose probability it sends.
        most: answers before it closes the connection with an error.
    """

    def __init__(self, label: str, most: int = 1000) -> None:
        self.label, self.most = label, most
        self.address = ""
        self.heard = b""
        self.answers = 0

    def open(self, socket: WebSocketRoute) -> None:
        """Take a connection of the page."""
        self.address = socket.url
        socket.on_message(lambda message: self.read(socket, message))

    def read(self, socket: WebSocketRoute, message: str | bytes) -> None:
        """Answer a message of the page."""
        if isinstance(message, str):
            assert message == "end"
            socket.send(json.dumps({"end": True, "seconds": len(self.heard) / 32_000, "windows": self.answers}))
            return
        self.heard += message
        while self.answers < len(self.heard) // 8000:
            if self.answers == self.most:
                socket.send(json.dumps({"error": "The model is gone."}))
                socket.close(code=1011)
                return
            self.answers += 1
            end_s = self.answers / 4
            scores = {self.label: 0.75, "other": 0.25}
            answer = {"start_s": max(0, end_s - 1), "end_s": end_s, "probabilities": scores, "lag_s": 0.125}
            socket.send(json.dumps(answer))


def test_stream_of_a_browsers_recorder_is_answered_to_its_end(own: Visit) -> None:
    (*windows, end), code = own.page.evaluate(RECORD)
    assert code == 1000
    assert end["seconds"] == pytest.approx(2.0, abs=0.5)
    assert end["windows"] == len(windows) > 5


def test_microphone_is_heard_by_the_model(own: Visit) -> None:
    own.page.click("#microphone")
    own.page.wait_for_selector("#length:has-text('after the sound')")
    assert own.page.locator("#lanes .lane").count() == len(bundles.LABELS)
    own.page.click("#microphone")
    own.page.wait_for_selector("#results:not([hidden])")
    assert own.asked("/v1/live") == 1
    assert not own.page.is_visible("#alert")


def test_microphone_is_sent_as_pcm_and_then_shown_as_a_recording(own: Visit) -> None:
    live = LiveServer("rain, heavy")
    own.page.route_web_socket("**/v1/live*", live.open)
    own.page.click("#microphone")
    own.page.wait_for_selector("#length:has-text('0.12 s after the sound'), #length:has-text('0.13 s after the sound')")
    own.page.wait_for_selector("#lanes .lane.found:has-text('rain, heavy')")
    assert own.page.locator("#lanes .lane").count() == 2
    assert own.text("#microphone") == "Stop"
    own.page.click("#microphone")
    own.page.wait_for_selector("#results:not([hidden])")
    assert own.text("#listen-title").startswith("microphone-")
    assert own.text("#length") == f"of {show_time(len(live.heard) / 32_000)}"
    assert "format=pcm_s16le&sample_rate_hz=16000" in live.address
    assert np.frombuffer(live.heard, "<i2").std() > 100  # it is the sound of the file
    assert own.text("#microphone") == "Use the microphone"


def test_live_session_that_the_server_ends_keeps_what_was_heard(own: Visit) -> None:
    own.page.route_web_socket("**/v1/live*", LiveServer("dog", most=2).open)
    own.page.click("#microphone")
    own.page.wait_for_selector("#results:not([hidden])")
    assert own.text("#alert-text") == "The model is gone."
    assert own.text("#listen-title").startswith("microphone-")


def test_microphone_needs_https_or_loopback(browser: Browser, server: ServedApp) -> None:
    with visit(browser, f"http://{ELSEWHERE}:{server.port}") as own:
        own.page.wait_for_selector("#microphone-hint:visible")
        assert own.page.is_disabled("#microphone")
        assert "only over HTTPS, or from the machine itself" in own.text("#microphone-hint")
