"""Artifacts behind a server that also offers addresses of its object store, which this machine cannot reach."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.tracking import mlflow_environment  # noqa: F401  # before mlflow, which reads it

# isort: split
import mlflow

REPORT = b"<html>report</html>"


class _Tracker(BaseHTTPRequestHandler):
    """MLflow's answers about one artifact; the address in the store is a port on which nothing listens."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/server-info"):
            self._answer(json.dumps({"multipart_downloads_enabled": True}).encode())
        elif "/presigned/" in path:
            self._answer(json.dumps({"url": "http://127.0.0.1:9/report.html", "file_size": len(REPORT)}).encode())
        elif path.endswith("/report.html"):
            self._answer(REPORT)
        else:
            self._answer(json.dumps({"files": []}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
        """Print nothing."""


@pytest.fixture
def tracker_address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Tracker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_artifact_comes_through_the_server_when_its_store_cannot_be_reached(tracker_address: str, tmp_path: Path):
    mlflow.set_tracking_uri(f"http://{tracker_address}")

    path = mlflow.artifacts.download_artifacts(
        f"mlflow-artifacts://{tracker_address}/report.html", dst_path=str(tmp_path)
    )

    assert Path(path).read_bytes() == REPORT
