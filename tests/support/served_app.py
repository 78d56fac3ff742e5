"""The application of a server in plain uvicorn, in a thread of the test."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import uvicorn
from fastapi import FastAPI
from servers import free_port

from pipeline.serving.application import build_app
from pipeline.serving.serve_options import ServeOptions

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60
START_S, STOP_S = 240, 90
"""Longest waits for a process to be ready and to end."""


@dataclass(frozen=True)
class Answer:
    """An answer of HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The value of the body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class HttpServer:
    """A server on loopback."""

    port: int

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a GET request."""
        return self.send("GET", path, None, headers)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a POST request; a dictionary is sent as JSON."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        return self.send("POST", path, body, headers)

    def send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and return its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class ServedApp(HttpServer):
    """The application in a thread of the test."""

    app: FastAPI


@dataclass(frozen=True)
class ServedProcess(HttpServer):
    """The stage `serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def serve_process(log: Path, *flags: str) -> Iterator[ServedProcess]:
    """Run `ast-pipeline serve`; yield it once it is ready, and end it and Ray.

    Args:
        log: file for its output.
        flags: flags of the stage, without the port.
    """
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", "--port", str(port), *flags]
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    own = ServedProcess(port, process, log)
    try:
        deadline = time.monotonic() + START_S
        while not _is_ready(own):
            assert process.poll() is None, f"the server did not start: {log.read_text()}"
            assert time.monotonic() < deadline, f"the server is not ready: {log.read_text()}"
            time.sleep(0.2)
        yield own
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.poll() is None:
                own.stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_ready(own: ServedProcess) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", own.port, timeout=2)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False


@contextlib.contextmanager
def serve_app(options: ServeOptions, wait: bool = True) -> Iterator[ServedApp]:
    """Run the application of a server; yield it once it is ready.

    Args:
        options: settings of the server.
        wait: whether to wait until the model is loaded.
    """
    app = build_app(options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not server.started or (wait and not app.state.server.ready):
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.02)
        yield ServedApp(server.servers[0].sockets[0].getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join(TIMEOUT_S)


def encode_wav(waveform_N: np.ndarray, rate_hz: int = 16_000, file_format: str = "WAV") -> bytes:
    """Return a recording as the content of a file."""
    content = io.BytesIO()
    soundfile.write(content, waveform_N, rate_hz, format=file_format)
    return content.getvalue()


def encode_form(files: list[tuple[str, bytes]], field: str = "file") -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a form with files."""
    boundary = "a1b2c3"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
