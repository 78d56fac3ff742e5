"""Errors, wrong answers and latency of a registered model, served by the README's command to many clients at once.

python benchmarks/load_serving.py [--clients 64] [--seconds 300] [--workers 1]
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from peers.comparison import arguments, print_machine
from peers.made_data import sound
from peers.memory import open_files, resident_mb

from ast_core.audio.waveform import load_waveform
from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.evaluation.prediction_table import ERROR, PROBABILITIES
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights.bundle import Bundle, write_bundle
from pipeline.tracking import mlflow_store, registry, runs
from pipeline.tracking.serving_requests import AUDIO

CLIENTS, SECONDS, QUICK_S = 64, 300.0, 5.0
MODEL = "ast-load"
LABELS = ("dog", "rain", "siren", "speech", "wind")
TOLERANCE = 1e-6
WARM_SHARE = 0.2
"""Share of the time after which memory must not grow: by then all threads and their buffers exist."""
START_S, ANSWER_S = 180, 600
"""Longest waits, for the server's start and for one answer."""
KINDS = (
    ("WAV", "PCM_16", 16_000, 1),
    ("WAV", "PCM_16", 44_100, 2),
    ("OGG", "VORBIS", 44_100, 1),
    ("FLAC", None, 22_050, 1),
)
"""Format, subtype, rate and channels of the recordings, in turn."""
QUESTIONS, BROKEN_EVERY, THREE_EVERY = 48, 6, 8
"""Number of different questions; one in six has a broken recording, one in eight has three recordings."""


@dataclasses.dataclass(frozen=True)
class Question:
    """Request and its correct answer."""

    body: bytes
    """Body of the HTTP request."""
    expected: tuple[np.ndarray | None, ...]
    """Probabilities [C] of each recording; None for a broken one."""


@dataclasses.dataclass
class Answers:
    """Answers that all clients received."""

    latencies_s: list[float] = dataclasses.field(default_factory=list)
    """Seconds of each request that was answered."""
    refused: int = 0
    """Broken recordings that were refused with a reason."""
    errors: list[str] = dataclasses.field(default_factory=list)
    """Errors of HTTP, and wrong answers."""
    server_mb: list[float] = dataclasses.field(default_factory=list)
    """Resident memory of the server, once a second."""
    files: tuple[int, int] = (0, 0)
    """Files that the server had open before and after."""


def register_model(folder: Path, store: str) -> Path:
    """Register a small model with random weights as champion, and return the folder of its bundle."""
    front_end = FrontEndConfig(target_frames=256)
    model = ModelConfig(
        backbone="ast_micro", patch_freq=128, patch_time=8, freq_stride=128, time_stride=8, init="scratch"
    )
    torch.manual_seed(0)
    weights = AST(model, front_end.num_mel_bins, front_end.target_frames, len(LABELS)).state_dict()
    weights["head.weight"] *= 50  # so that different recordings have different answers
    identity = {"model": to_dict(model), "front_end": to_dict(front_end), "labels": list(LABELS), "loss": "bce"}
    write_bundle(folder, [("seed-0", weights, {**identity, "mean": -6.0, "std": 4.0})], False)
    mlflow_store.open_store(store)
    with runs.start_run("load", "load", {}, {}) as run_id:
        example = pd.DataFrame({AUDIO: [_encoded(sound(0, 16_000, 1.0), *KINDS[0][:3])]})
        version = registry.add_version(MODEL, folder, run_id, example, {}, {})
    registry.set_alias(MODEL, registry.CHAMPION, version)
    return folder


def make_questions(bundle: Path, seed: int = 0) -> list[Question]:
    """Return requests with one or three recordings of 1 to 10 s, some of them broken, and the bundle's own answers."""
    rng, predictor = np.random.default_rng(seed), Predictor(Bundle.load(bundle))
    made: list[Question] = []
    for number in range(QUESTIONS):
        contents = [_recording(rng, number + place) for place in range(3 if number % THREE_EVERY == 0 else 1)]
        expected = [_answer(predictor, content) for content in contents]
        if number % BROKEN_EVERY == 0:
            contents[0], expected[0] = _broken(rng, contents[0], number // BROKEN_EVERY), None
        rows = [{AUDIO: base64.b64encode(content).decode()} for content in contents]
        made.append(Question(json.dumps({"dataframe_records": rows}).encode(), tuple(expected)))
    known = [scores_C for question in made for scores_C in question.expected if scores_C is not None]
    apart = min(np.abs(a - b).max() for n, a in enumerate(known) for b in known[:n])
    if apart < 10 * TOLERANCE:
        raise SystemExit("Two recordings have the same answer, so an exchange of answers would not be noticed.")
    return made


def _recording(rng: np.random.Generator, kind: int) -> bytes:
    file_format, subtype, rate_hz, channels = KINDS[kind % len(KINDS)]
    wave_NK = sound(int(rng.integers(1 << 30)), rate_hz, rng.uniform(1, 10), channels)
    return _encoded(wave_NK, file_format, subtype, rate_hz)


def _encoded(wave_NK: np.ndarray, file_format: str, subtype: str | None, rate_hz: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, wave_NK, rate_hz, format=file_format, subtype=subtype)
    return content.getvalue()


def _broken(rng: np.random.Generator, content: bytes, kind: int) -> bytes:
    """Return a broken recording: its first half, no bytes, noise, or a page of HTML."""
    return (content[: len(content) // 2], b"", rng.bytes(5000), b"<!DOCTYPE html><title>404</title>")[kind % 4]


def _answer(predictor: Predictor, content: bytes) -> np.ndarray:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return predictor.probabilities(load_waveform(file.name, predictor.bundle.front_end.sample_rate_hz))


@contextlib.contextmanager
def serve(store: str, folder: Path, options: Sequence[str] = ()) -> Iterator[tuple[int, int]]:
    """Run the README's command on loopback, and yield the port and process id of the server.

    Args:
        store: MLflow's store with the registered model.
        folder: folder of the server's log.
        options: further options of `mlflow models serve`.
    """
    programs = Path(sys.executable).parent
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    command = [str(programs / "mlflow"), "models", "serve", "-m", f"models:/{MODEL}@{registry.CHAMPION}"]
    command += ["--env-manager", "local", "-p", str(port), *options]
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": store}
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"The server did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
            time.sleep(0.2)
        yield port, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/ping")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False


def ask(port: int, server: int, asked: Sequence[Question], clients: int, seconds: float) -> Answers:
    """Send each question once in order, then let clients send random questions, each one after the other.

    Args:
        port: port of the server.
        server: process id of the server.
        asked: questions to choose from.
        clients: number of clients that ask at the same time.
        seconds: time during which clients send new questions.
    """
    seen = Answers()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    for question in asked:
        _ask_once(connection, question, seen)
    connection.close()
    seen.latencies_s.clear()
    before = open_files(server)
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(_client, port, asked, until, number, seen) for number in range(clients)]
        while time.monotonic() < until:
            seen.server_mb.append(resident_mb(server))
            time.sleep(1)
        for client in running:
            client.result()
    seen.server_mb.append(resident_mb(server))
    time.sleep(1)  # the server needs a moment to close the connections
    seen.files = before, open_files(server)
    return seen


def _client(port: int, asked: Sequence[Question], until: float, number: int, seen: Answers) -> None:
    rng = np.random.default_rng(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    while time.monotonic() < until:
        _ask_once(connection, asked[rng.integers(len(asked))], seen)
    connection.close()


def _ask_once(connection: http.client.HTTPConnection, question: Question, seen: Answers) -> None:
    started = time.monotonic()
    try:
        connection.request("POST", "/invocations", question.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        seen.errors.append(repr(error))
        return
    seen.latencies_s.append(time.monotonic() - started)
    if response.status != http.HTTPStatus.OK:
        seen.errors.append(f"HTTP {response.status}: {content[:200]!r}")
        return
    rows = json.loads(content)["predictions"]
    for row, expected_C in zip(rows, question.expected, strict=True):
        if expected_C is None:
            right = bool(row[ERROR]) and row[PROBABILITIES] is None
            seen.refused += right
        else:
            scores_C = np.array([(row[PROBABILITIES] or {}).get(label, np.nan) for label in LABELS])
            right = not row[ERROR] and bool(np.abs(scores_C - expected_C).max() <= TOLERANCE)
        if not right:
            seen.errors.append(f"an answer differs: {row}, not {expected_C}")


def figures(seen: Answers, seconds: float) -> dict[str, float]:
    """Return the counts of requests, their latencies, and the server's memory and open files."""
    percentiles = statistics.quantiles(seen.latencies_s, n=100, method="inclusive")
    warm = seen.server_mb[int(WARM_SHARE * len(seen.server_mb)) :]
    return {
        "requests": len(seen.latencies_s),
        "requests_per_s": len(seen.latencies_s) / seconds,
        "broken_refused": seen.refused,
        "errors": len(seen.errors),
        "p50_s": percentiles[49],
        "p90_s": percentiles[89],
        "p99_s": percentiles[98],
        "slowest_s": max(seen.latencies_s),
        "server_mb_at_first": seen.server_mb[0],
        "server_mb_warm": warm[0],
        "server_mb_at_last": warm[-1],
        "files_before": seen.files[0],
        "files_after": seen.files[1],
    }


def main() -> None:
    """Serve a model, let all clients ask for the given time, and print the figures."""
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--workers", type=int, default=1, help="workers of `mlflow models serve`")
    parser.add_argument("--timeout", type=int, default=60, help="timeout of `mlflow models serve`, in seconds")
    args = parser.parse_args()
    seconds = QUICK_S if args.quick else args.seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = f"sqlite:///{folder / 'mlflow.db'}"
        asked = make_questions(register_model(folder / "bundle", store))
        options = ["--workers", str(args.workers), "--timeout", str(args.timeout)]
        with serve(store, folder, options) as (port, server):
            seen = ask(port, server, asked, args.clients, seconds)
    for key, value in figures(seen, seconds).items():
        print(f"{key.replace('_', ' ')}: {value:.4g}")
    for error in seen.errors[:5]:
        print(error)
    print_machine()
    if seen.errors:
        raise SystemExit(f"{len(seen.errors)} of {len(seen.latencies_s)} requests went wrong")


if __name__ == "__main__":
    main()
