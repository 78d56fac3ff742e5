"""A stand-in of Hugging Face's hub on loopback: repositories with commits and branches, and the hub's answers.

Weights are sent as from the hub: its answer names size and SHA-256, and redirects to another host, which gets no token.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from prepared import BINS, FRONT_END, LABELS

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.model.transformer import AST
from ast_core.weights.huggingface import HuggingFaceModel, write_folder

NAME = "tests/small-ast"
MODEL = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
MEAN, STD = -6.0, 4.0
Fault = Literal["", "cuts", "cuts once", "stops", "other bytes", "is down"]
"""Fault of the host of the weights: each answer ends in the middle, only the first does, the server then stops, a byte
is wrong; or every answer of the hub is an error of the server."""


def write_model(folder: Path, seed: int = 0, front_end: FrontEndConfig = FRONT_END) -> Path:
    """Write a small model with random weights in Hugging Face's format."""
    torch.manual_seed(seed)
    weights = AST(MODEL, BINS, front_end.target_frames, len(LABELS)).state_dict()
    write_folder(folder, HuggingFaceModel(MODEL, front_end, MEAN, STD, tuple(LABELS), True, weights))
    return folder


@dataclass
class Repository:
    """One repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of each commit by name."""
    branches: dict[str, str] = field(default_factory=dict)
    """Commit of each branch or tag."""
    refusal: tuple[int, str] = (0, "")
    """Status and error code with which the hub refuses access; 0 if it does not."""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit at the end of a branch, and return its hash."""
        content = "".join(f"{name}:{hashlib.sha256(data).hexdigest()}" for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit

    def commit_folder(self, folder: Path, branch: str = "main") -> str:
        """Add a commit with the files of a folder, and with those of a real model that are not to be downloaded."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return self.commit(files | {"pytorch_model.bin": b"a pickle", "README.md": b"text", "code.py": b"1/0"}, branch)


class LocalHub:
    """The repositories, and what was asked of the server."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        """Method and path of each request."""
        self.tokens: list[str] = []
        """Headers with a token that the host of the weights got."""
        self.fault: Fault = ""
        self.stopped = False
        """Whether the server answers nothing more, on open connections, too."""
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Address of the hub; the weights have the same port under another name."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, name: str = NAME) -> Repository:
        """Add an empty repository."""
        return self.repositories.setdefault(name, Repository())

    def downloads(self, file: str) -> int:
        """Return how many times a file was asked for."""
        return sum(own.startswith("GET") and own.endswith(f"/{file}") for own in self.requests)

    @contextlib.contextmanager
    def running(self) -> Iterator[LocalHub]:
        """Answer requests while this context is open."""
        hub = self

        class Handler(_Handler):
            owner = hub

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as self._server:
            thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                self.stop()
                thread.join()

    def stop(self) -> None:
        """Stop to listen; the next connection is refused."""
        assert self._server is not None
        self.stopped = True
        self._server.shutdown()
        self._server.socket.close()

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables with which a process uses this hub and an empty cache."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def use_hub(patch: pytest.MonkeyPatch, hub: LocalHub, home: Path) -> None:
    """Let this process use the hub; the package huggingface_hub read its variables when it was imported."""
    from huggingface_hub import constants, file_download  # noqa: PLC0415
    from huggingface_hub.utils import _http  # noqa: PLC0415

    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    patch.delenv("HF_TOKEN", raising=False)
    for module in (file_download, _http):  # it waits for seconds between its tries

        class Impatient:
            sleep = staticmethod(lambda _: None)
            time = staticmethod(module.time.time)

        patch.setattr(module, "time", Impatient)


class _Handler(BaseHTTPRequestHandler):
    owner: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Write nothing to stderr."""

    def _answer(self) -> None:
        if self.owner.stopped:
            self.close_connection = True
            return
        self.owner.requests.append(f"{self.command} {self.path}")
        if self.owner.fault == "is down":
            self._send(503, {}, b"")
        elif self.path.startswith("/weights/"):
            self._send_weights()
        else:
            self._resolve()

    def _resolve(self) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)", self.path)
        repository = self.owner.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            self._refuse(404, "RepoNotFound")
            return
        if repository.refusal[0]:
            self._refuse(*repository.refusal)
            return
        revision = match[2].replace("%2F", "/")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return
        data = repository.commits[commit].get(match[3])
        known = {"X-Repo-Commit": commit}
        if data is None:
            self._refuse(404, "EntryNotFound", known)
        elif match[3].endswith((".safetensors", ".bin")):
            sha256 = hashlib.sha256(data).hexdigest()
            port = self.server.server_address[1]
            known |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            place = f"http://localhost:{port}/weights/{match[1]}/{commit}/{match[3]}"
            self._send(302, known | {"Location": place}, b"")
        else:
            own = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            self._send(200, known | {"ETag": f'"{own}"'}, data)

    def _send_weights(self) -> None:
        self.owner.tokens += [value for key, value in self.headers.items() if key.lower() == "authorization"]
        _, _, organisation, name, commit, file = self.path.split("/")
        data = self.owner.repositories[f"{organisation}/{name}"].commits[commit][file]
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if self.owner.fault == "other bytes":
            data = data[:-1] + bytes([data[-1] ^ 1])
        status = 206 if first else 200
        ranges = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        if self.owner.fault not in {"cuts", "cuts once", "stops"}:
            self._send(status, ranges, data[first:])
            return
        self._send(status, ranges, data[first:], sent=0 if first else len(data) // 2)
        if self.owner.fault == "stops":
            threading.Thread(target=self.owner.stop).start()
        self.owner.fault = "" if self.owner.fault == "cuts once" else self.owner.fault

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"X-Error-Code": code, **(headers or {})} if code else headers or {}, b"")

    def _send(self, status: int, headers: dict[str, str], data: bytes, sent: int | None = None) -> None:
        """Send an answer; of its data only the first `sent` bytes, and then close the connection."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:sent])
        if sent is not None:
            self.close_connection = True
