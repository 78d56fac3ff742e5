"""A session answers in order, holds little, and ends with a reason when it cannot go on."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ears
import numpy as np
import psutil
import pytest
from audio_files import encode, tone

from ast_core.audio.fbank import Fbank
from ast_core.errors import ClipError, UserError
from ast_core.evaluation.live.live_windows import LiveWindow, score_live
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import Window
from ast_core.weights.bundle import Bundle
from pipeline.listening import live_session
from pipeline.listening.live_session import ClientLeftError, LiveError, LiveRequest, LiveServer, LiveSession

RATE_HZ = ears.RATE_HZ
SECOND = np.full(RATE_HZ, 100, "<i2").tobytes()
END = {"type": "websocket.receive", "text": "end"}
LEAVE = {"type": "websocket.disconnect", "code": 1000}


def audio(content: bytes) -> dict[str, Any]:
    return {"type": "websocket.receive", "bytes": content}


@dataclass
class FakeModel:
    """A model of which a test says when it computes."""

    bundle: Bundle = field(default_factory=ears.make_bundle)
    may_compute: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)

    def measure_hop(self, hop_s: float) -> tuple[Fbank, int]:
        """Return the filterbank and the hop in samples."""
        return Predictor(self.bundle).measure_hop(hop_s)

    def score_windows(self, windows: Sequence[Window]) -> np.ndarray:
        """Return the probabilities of windows, once the test lets the model compute."""
        assert self.may_compute.wait(20)
        self.batches.append(len(windows))
        return score_live(Predictor(self.bundle), [LiveWindow(own, 0.0, 0.0) for own in windows])


@dataclass
class FakeSocket:
    """A client: messages that it sends at once, and then nothing."""

    messages: list[dict[str, Any]]
    reads: bool = True
    taken: int = 0
    sent: list[dict[str, Any]] = field(default_factory=list)

    async def receive(self) -> Any:
        """Return the next message."""
        if self.taken == len(self.messages):
            await asyncio.Event().wait()
        self.taken += 1
        return self.messages[self.taken - 1]

    async def send_text(self, data: str) -> None:
        """Keep a message, unless the client does not read."""
        if not self.reads:
            await asyncio.Event().wait()
        self.sent.append(json.loads(data))


def run(
    socket: FakeSocket, model: FakeModel | None = None, form: str = "pcm_s16le", hop_s: float = 1.0, **server: Any
) -> FakeModel:
    """Run a session to its end with a model that computes, unless the test has its own."""
    if model is None:
        model = FakeModel()
        model.may_compute.set()

    async def find() -> FakeModel:
        return model

    async def answer() -> None:
        options = {"find_model": find, "is_stopping": lambda: False, "threads": threads, **server}
        await LiveSession(socket, LiveRequest(form, RATE_HZ, hop_s, 2), LiveServer(**options)).run()

    with ThreadPoolExecutor(4) as threads:
        asyncio.run(answer())
    return model


def test_a_fast_client_is_answered_in_order_and_little_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_session, "HELD_BYTES", 4 * len(SECOND))
    model, socket = FakeModel(), FakeSocket([audio(SECOND)] * 100 + [END])
    thread = threading.Thread(target=run, args=(socket, model))
    thread.start()
    for _ in range(20):  # until no more is read
        before = socket.taken
        time.sleep(0.05)
        if before == socket.taken > 10:
            break
    held = socket.taken
    model.may_compute.set()
    thread.join(30)
    assert held < 60  # what waits, 8 blocks of samples, and one batch of windows
    ends_s = [own["end_s"] for own in socket.sent[:-1]]
    assert ends_s == sorted(ends_s)
    assert socket.sent[-1] == {"end": True, "seconds": 100.0, "windows": len(ends_s)}
    assert ends_s[-1] == pytest.approx(100.0, abs=0.01)  # a frame
    assert sum(model.batches) == len(ends_s) >= 100
    assert max(model.batches) > 1  # a model that is behind computes several windows at a time


def test_a_server_that_cannot_stop_reading_refuses_what_it_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_session, "READ_AHEAD_BYTES", 1 << 20)
    model, socket = FakeModel(), FakeSocket([audio(SECOND)] * 100)
    threading.Timer(1, model.may_compute.set).start()
    with pytest.raises(LiveError, match="send no faster than results come") as caught:
        run(socket, model, reads_ahead=True)
    assert caught.value.code == 1008


def test_a_client_that_does_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_session, "SEND_S", 0.1)
    with pytest.raises(LiveError, match="results were not read") as caught:
        run(FakeSocket([audio(SECOND)] * 3, reads=False))
    assert caught.value.code == 1008


def test_a_silent_client_and_a_server_that_stops_end_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_session, "IDLE_S", 0.2)
    monkeypatch.setattr(live_session, "LOOK_EVERY_S", 0.1)
    with pytest.raises(LiveError, match="No audio came") as caught:
        run(FakeSocket([audio(SECOND)]))
    assert caught.value.code == 1008
    with pytest.raises(LiveError, match="being stopped") as caught:
        run(FakeSocket([audio(SECOND)] * 5), is_stopping=lambda: True)
    assert caught.value.code == 1001


@pytest.mark.parametrize(
    ("messages", "code", "sentence"),
    [
        ([audio(bytes(live_session.MOST_MESSAGE_BYTES + 1))], 1009, "A message has 262145 bytes"),
        ([{"type": "websocket.receive", "text": "stop"}], 1003, "text message is unknown"),
        ([END, audio(SECOND)], 1003, "after `end`"),
    ],
)
def test_a_wrong_message_ends_the_session(messages: list[dict[str, Any]], code: int, sentence: str) -> None:
    model = FakeModel()
    threading.Timer(0.3, model.may_compute.set).start()
    with pytest.raises(LiveError, match=sentence) as caught:
        run(FakeSocket([audio(SECOND), *messages]), model)
    assert caught.value.code == code


def test_audio_that_cannot_be_used_ends_the_session() -> None:
    for messages, reason in [([audio(b"a"), END], "less than one sample"), ([END], "less than one window")]:
        with pytest.raises(ClipError, match=reason):
            run(FakeSocket(messages))
    with pytest.raises(ClipError, match="Invalid data"):
        run(FakeSocket([audio(bytes(100_000)), END]), form="ogg_opus")
    with pytest.raises(UserError, match="leaves gaps"):
        run(FakeSocket([END]), hop_s=10.0)


def test_a_client_that_leaves_ends_the_decoder() -> None:
    content = encode("webm", "libopus", tone(3 * 48_000, rate_hz=48_000), 48_000, pipe=True)
    with pytest.raises(ClientLeftError):
        run(FakeSocket([audio(content[:5000]), LEAVE]), form="webm_opus")
    children = [child.cmdline() for child in psutil.Process().children()]
    assert not [words for words in children if "opus_process" in " ".join(words)]


@pytest.mark.parametrize("form", ["ogg_opus", "webm_opus"])
def test_opus_is_answered_while_it_comes(form: str) -> None:
    content = encode(form.partition("_")[0], "libopus", tone(4 * 48_000, rate_hz=48_000), 48_000, pipe=True)
    socket = FakeSocket([audio(content[place : place + 1000]) for place in range(0, len(content), 1000)] + [END])
    run(socket, form=form)
    *windows, end = socket.sent
    assert end["seconds"] == pytest.approx(4.0, abs=0.03)
    assert end["windows"] == len(windows) >= 4
    assert all(list(own["probabilities"]) == ["low", "high"] for own in windows)


@pytest.mark.parametrize("form", ["ogg_opus", "webm_opus"])
def test_damaged_opus_is_answered_up_to_the_damage_and_then_refused(form: str) -> None:
    content = encode(form.partition("_")[0], "libopus", tone(10 * 48_000, rate_hz=48_000), 48_000, pipe=True)
    damaged = content[: len(content) // 2] + bytes(500) + content[len(content) // 2 + 500 :]
    socket = FakeSocket([audio(damaged[place : place + 1000]) for place in range(0, len(damaged), 1000)] + [END])
    with pytest.raises(ClipError, match=r"the decoder stopped at about [45]\.\d s: FFmpeg: "):
        run(socket, form=form)
    ends_s = [own["end_s"] for own in socket.sent]
    assert ends_s == [pytest.approx(n + 0.995, abs=0.05) for n in range(len(ends_s))]
    assert len(ends_s) in {3, 4}  # the resampler holds the last samples of a page


def test_a_new_model_answers_from_the_next_window_on_if_it_has_the_same_classes() -> None:
    first, second, other = FakeModel(), FakeModel(), FakeModel()
    object.__setattr__(other.bundle, "labels", ("low", "deep"))
    for model in (first, second, other):
        model.may_compute.set()
    models = [first, first, second]

    async def find() -> FakeModel:
        return models.pop(0) if len(models) > 1 else models[0]

    run(FakeSocket([audio(SECOND)] * 50 + [END]), find_model=find)
    assert first.batches
    assert second.batches
    models[:] = [first, other]
    with pytest.raises(LiveError, match="Another model") as caught:
        run(FakeSocket([audio(SECOND)] * 6 + [END]), find_model=find)
    assert caught.value.code == 1001
