"""Errors, wrong answers and latency of one registered model, served by `ast-pipeline serve` and by MLflow.

Both get the same requests, JSON with base64, from 1, 8 and 64 clients at once, one server after the other.

python benchmarks/load_serving.py [--clients 1 8 64] [--seconds 300] [--servers mlflow serve]
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
from collections.abc import Callable, Iterator, Sequence
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

CLIENTS, SECONDS, QUICK_S = (1, 8, 64), 300.0, 5.0
FEWER_SHARE = 0.2
"""Share of the time for each number of clients but the last."""
GOAL_REQUESTS, GOAL_P99 = 2.0, 0.5
"""Requests a second and 99th percentile of `serve` with the most clients, as factors of MLflow's."""
MODEL = "ast-load"
LABELS = ("dog", "rain", "siren", "speech", "wind")
TOLERANCE = 1e-6
WARM_SHARE = 0.2
"""Share of the time after which memory must not grow: by then all threads and their buffers exist."""
START_S, ANSWER_S, STOP_S = 180, 600, 60
"""Longest waits, for the server's start, for one answer, and for the server's end."""
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

    bodies: dict[str, bytes]
    """Body of the HTTP request for each server."""
    expected: tuple[np.ndarray | None, ...]
    """Probabilities [C] of each recording; None for a broken one."""


@dataclasses.dataclass(frozen=True)
class Server:
    """One way to serve a model, and the words of its requests."""

    name: str
    path: str
    ready: str
    command: Callable[[int], list[str]]
    """Command line for a port."""
    write: Callable[[list[str]], object]
    """Body of a request as JSON, for recordings as base64."""
    read: Callable[[int, bytes, int], list[dict[str, object]]]
    """Rows of an answer with `error` and `probabilities`, for a status, a content and the number of recordings."""


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
    weights["head.weight"] *= 10  # so that different recordings have different answers
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
        coded = [base64.b64encode(content).decode() for content in contents]
        bodies = {own.name: json.dumps(own.write(coded)).encode() for own in SERVERS.values()}
        made.append(Question(bodies, tuple(expected)))
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


def mlflow_command(port: int) -> list[str]:
    """Return the command of the documents."""
    program = str(Path(sys.executable).parent / "mlflow")
    model = f"models:/{MODEL}@{registry.CHAMPION}"
    return [program, "models", "serve", "-m", model, "--env-manager", "local", "-p", str(port)]


def serve_command(port: int) -> list[str]:
    """Return the command of the stage."""
    program = str(Path(sys.executable).parent / "ast-pipeline")
    return [program, "serve", "--model", f"models:/{MODEL}@{registry.CHAMPION}", "--port", str(port)]


def read_mlflow(status: int, content: bytes, count: int) -> list[dict[str, object]]:
    """Return the rows of an answer of MLflow; ValueError if it is no answer."""
    if status != http.HTTPStatus.OK:
        raise ValueError(f"HTTP {status}: {content[:200]!r}")
    rows: list[dict[str, object]] = json.loads(content)["predictions"]
    return rows if len(rows) == count else [{}] * count


def read_serve(status: int, content: bytes, count: int) -> list[dict[str, object]]:
    """Return the rows of an answer of `serve`, which refuses a request if all its recordings are broken."""
    answer = json.loads(content)
    if status == http.HTTPStatus.UNPROCESSABLE_ENTITY and count == 1:
        return [{ERROR: answer["error"], PROBABILITIES: None}]
    if status != http.HTTPStatus.OK:
        raise ValueError(f"HTTP {status}: {content[:200]!r}")
    rows: list[dict[str, object]] = answer["results"]
    return rows if len(rows) == count else [{}] * count


SERVERS = {
    "mlflow": Server(
        "mlflow", "/invocations", "/ping", mlflow_command,
        lambda coded: {"dataframe_records": [{AUDIO: own} for own in coded]}, read_mlflow,
    ),
    "serve": Server(
        "serve", "/v1/predict", "/readyz", serve_command,
        lambda coded: {"files": [{"audio": own} for own in coded]}, read_serve,
    ),
}  # fmt: skip
"""Servers by the name that `--servers` takes."""


@contextlib.contextmanager
def serve(
    store: str, folder: Path, options: Sequence[str] = (), own: Server = SERVERS["mlflow"]
) -> Iterator[tuple[int, int]]:
    """Run a server on loopback, and yield its port and process id.

    Args:
        store: MLflow's store with the registered model.
        folder: folder of the server's log.
        options: further options of its command.
        own: server to run.
    """
    programs = Path(sys.executable).parent
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    command = [*own.command(port), *options]
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": store}
    log = folder / f"{own.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while not _ready(port, own.ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"The server did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
            time.sleep(0.2)
        yield port, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ready(port: int, path: str) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False


def ask(
    port: int, server: int, asked: Sequence[Question], clients: int, seconds: float, own: Server = SERVERS["mlflow"]
) -> Answers:
    """Send each question once in order, then let clients send random questions, each one after the other.

    Args:
        port: port of the server.
        server: process id of the server.
        asked: questions to choose from.
        clients: number of clients that ask at the same time.
        seconds: time during which clients send new questions.
        own: server that answers.
    """
    seen = Answers()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    for question in asked:
        _ask_once(connection, own, question, seen)
    connection.close()
    seen.latencies_s.clear()
    before = open_files(server)
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(_client, port, own, asked, until, number, seen) for number in range(clients)]
        while time.monotonic() < until:
            seen.server_mb.append(resident_mb(server))
            time.sleep(1)
        for client in running:
            client.result()
    seen.server_mb.append(resident_mb(server))
    time.sleep(1)  # the server needs a moment to close the connections
    seen.files = before, open_files(server)
    return seen


def _client(port: int, own: Server, asked: Sequence[Question], until: float, number: int, seen: Answers) -> None:
    rng = np.random.default_rng(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    while time.monotonic() < until:
        _ask_once(connection, own, asked[rng.integers(len(asked))], seen)
    connection.close()


def _ask_once(connection: http.client.HTTPConnection, own: Server, question: Question, seen: Answers) -> None:
    started = time.monotonic()
    try:
        connection.request("POST", own.path, question.bodies[own.name], {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        seen.errors.append(repr(error))
        return
    seen.latencies_s.append(time.monotonic() - started)
    try:
        rows = own.read(response.status, content, len(question.expected))
    except ValueError as error:
        seen.errors.append(str(error))
        return
    for row, expected_C in zip(rows, question.expected, strict=True):
        error, found = row.get(ERROR), row.get(PROBABILITIES)
        if expected_C is None:
            right = bool(error) and found is None
            seen.refused += right
        else:
            scores_C = np.array([found.get(label, np.nan) if isinstance(found, dict) else np.nan for label in LABELS])
            right = not error and bool(np.abs(scores_C - expected_C).max() <= TOLERANCE)
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
        "p95_s": percentiles[94],
        "p99_s": percentiles[98],
        "slowest_s": max(seen.latencies_s),
        "server_mb_at_first": seen.server_mb[0],
        "server_mb_warm": warm[0],
        "server_mb_at_last": warm[-1],
        "files_before": seen.files[0],
        "files_after": seen.files[1],
    }


def measure(
    own: Server, store: str, folder: Path, asked: Sequence[Question], counts: Sequence[int], seconds: float
) -> list[tuple[dict[str, float], list[str]]]:
    """Return the figures and the errors of one server for each number of clients; the last one has all the time."""
    found = []
    with serve(store, folder, OPTIONS[own.name], own) as (port, server):
        for clients in counts:
            share = seconds if clients == counts[-1] else FEWER_SHARE * seconds
            seen = ask(port, server, asked, clients, share, own)
            found.append((figures(seen, share), seen.errors))
    return found


OPTIONS = {"mlflow": ["--timeout", "600"], "serve": ["--gpus", "no"]}
"""Further options. MLflow gives up after 60 s by default, which 64 clients of a busy machine may reach."""
COLUMNS = {
    "requests/s": "requests_per_s", "p50 s": "p50_s", "p95 s": "p95_s", "p99 s": "p99_s", "slowest s": "slowest_s",
    "requests": "requests", "errors": "errors", "MiB at first": "server_mb_at_first",
    "MiB at last": "server_mb_at_last",
}  # fmt: skip
"""Columns of the table, and the figures that they show."""


def main() -> None:
    """Serve a model, let all clients ask for the given time, and print the table and the goals."""
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for the last number of clients")
    parser.add_argument("--servers", nargs="+", choices=tuple(SERVERS), default=tuple(SERVERS))
    args = parser.parse_args()
    seconds, errors = QUICK_S if args.quick else args.seconds, []
    last: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = f"sqlite:///{folder / 'mlflow.db'}"
        asked = make_questions(register_model(folder / "bundle", store))
        print(f"| server | clients | {' | '.join(COLUMNS)} |\n|---|{'---|' * (len(COLUMNS) + 1)}")
        for own in args.servers:
            found = measure(SERVERS[own], store, folder, asked, args.clients, seconds)
            for clients, (row, wrong) in zip(args.clients, found, strict=True):
                print(
                    f"| {own} | {clients} | {' | '.join(f'{row[key]:.4g}' for key in COLUMNS.values())} |", flush=True
                )
                last[own] = row
                errors += wrong
    if len(last) == len(SERVERS):
        print_goals(last["serve"], last["mlflow"], args.clients[-1])
    for error in errors[:5]:
        print(error)
    print_machine()
    if errors:
        raise SystemExit(f"{len(errors)} requests went wrong")


def print_goals(own: dict[str, float], peer: dict[str, float], clients: int) -> None:
    """Print how `serve` compares with MLflow, next to the goals."""
    more, later = own["requests_per_s"] / peer["requests_per_s"], own["p99_s"] / peer["p99_s"]
    print(f"{clients} clients: {more:.2f} times the requests a second of MLflow (goal {GOAL_REQUESTS:g})")
    print(f"{clients} clients: {later:.2f} times the 99th percentile of MLflow (goal {GOAL_P99:g})")


if __name__ == "__main__":
    main()
