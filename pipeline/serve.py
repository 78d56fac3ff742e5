"""Answer HTTP requests with a model: probabilities, events and embeddings of recordings.

ast-pipeline serve --model models:/ast-demo@champion --port 8000
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["serve", *sys.argv[1:]])
    sys.exit()


from rich.console import Console

from ast_core.errors import UserError, require
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import ServeSettings
from pipeline.tracking.model_choice import is_model_address, open_model_folder
from pipeline.tracking.store_uri import choose_store

try:
    from ray import serve as ray_serve
except ModuleNotFoundError as error:
    raise UserError(
        f"`serve` needs the package {error.name}; run `pip install 'ast-pipeline[serve]'`, or `make` in a checkout."
    ) from error

from ast_core.weights.bundle import Bundle
from pipeline.ray_runtime import connection, internals
from pipeline.serving.client_tokens import read_tokens
from pipeline.serving.listening_replica import KEEP_ALIVE_S, Listener
from pipeline.serving.serve_deployment import DeploymentOptions, bind, drain_replicas, remove_board
from pipeline.serving.serve_options import ServeOptions
from pipeline.serving.server_metrics import READY, RUNNING

APPLICATION = "ast-pipeline"
"""Name of the application in Ray Serve."""
LOOK_S = 0.2
WATCH_S = 5.0
"""Seconds between two looks at the state of the application."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(settings: ServeSettings) -> None:
    """Serve a model until SIGTERM or Ctrl-C, then answer the requests that run, and return.

    Raises:
        UserError: the model, the file of tokens or a setting cannot be used, or the port is taken.
    """
    options = _read_options(settings)
    _check_model(options.server)
    port = _choose_port(settings.host, settings.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    alone = options.replicas[1] == 1 and connection.starts_local(settings.address)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a model's idle threads leave the cores to those that decode
    with connection.connect(settings.address, options.replicas[1], settings.gpus):
        _warn(settings)
        ray_serve.start(
            proxy_location="Disabled" if alone else None,
            http_options={"host": settings.host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE_S},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        try:
            _deploy(options, Listener(settings.host, port, settings.drain_s) if alone else None)
            with _catch_stop() as stop:  # after `ray.init`, which sets a handler of its own
                _announce(f"{settings.model} is served at http://{settings.host}:{port}. Ctrl-C or SIGTERM stops it.")
                _watch(stop)
                _drain(options)
        finally:
            _end()


def _end() -> None:
    """End the application; the server of a cluster that others use goes on."""
    if internals.is_local():
        ray_serve.shutdown()
    else:
        ray_serve.delete(APPLICATION)
        remove_board()


def _announce(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def _read_options(settings: ServeSettings) -> DeploymentOptions:
    """Return the settings of the replicas; UserError names a wrong one."""
    model = settings.model if is_model_address(settings.model) else str(Path(settings.model).absolute())
    tokens = "" if settings.tokens is None else str(settings.tokens.absolute())
    read_tokens(tokens)
    server = ServeOptions(
        model=model,
        tracking=choose_store(settings.tracking),
        tokens=tokens,
        cors=settings.cors,
        gpus=settings.gpus,
        threads=settings.threads,
        max_request_mib=settings.max_request_mib,
        max_seconds=settings.max_seconds,
        max_waiting=settings.max_waiting,
        refresh_s=settings.refresh_s,
    )
    return DeploymentOptions(server, settings.replicas, settings.drain_s)


def _check_model(options: ServeOptions) -> None:
    """Raise UserError if the model does not exist or cannot be loaded; replicas would try it again and again."""
    with open_model_folder(options.model, options.tracking) as folder:
        Bundle.load(folder)


def _choose_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; UserError if another process listens on it."""
    require(0 <= port <= 65_535, f"--port is {port}; give a number from 0 to 65535.")
    try:
        with socket.create_server((host, port)) as found:
            return int(found.getsockname()[1])
    except OSError as error:
        what = "another process listens on it" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
        raise UserError(f"--host {host} --port {port} cannot be used: {what}. Give another --port or --host.") from None


def _warn(settings: ServeSettings) -> None:
    """Print a warning if other machines may use the server without a token."""
    if settings.tokens is None and settings.host not in LOOPBACK:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"Warning: --host {settings.host} lets other machines in without a token. Give --tokens FILE.",
            markup=False,
        )


def _deploy(options: DeploymentOptions, listener: Listener | None) -> None:
    """Start the replicas and wait until each has made a prediction; a listener is for the only one."""
    remove_board()
    try:
        ray_serve.run(bind(options, listener), name=APPLICATION, route_prefix="/" if listener is None else None)
    except RuntimeError as error:
        reason = re.findall(r"UserError: (.+)", str(error))
        raise UserError(reason[-1].strip() if reason else f"The server did not start: {error}") from error


def _watch(stop: threading.Event) -> None:
    """Wait until the server is to stop; UserError if it broke down."""
    while not stop.wait(WATCH_S):
        found = ray_serve.status().applications.get(APPLICATION)
        require(
            found is not None and found.status != "DEPLOY_FAILED",
            f"The server broke down: {found.message if found else 'its application was deleted'}.",
        )


def _drain(options: DeploymentOptions) -> None:
    """Refuse new requests and wait for the answers of those that run."""
    deadline = time.monotonic() + options.drain_s
    while time.monotonic() < deadline:
        counts = drain_replicas()
        if not counts.get(READY) and not counts.get(RUNNING):
            break
        time.sleep(LOOK_S)


@contextlib.contextmanager
def _catch_stop() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM or Ctrl-C sets; the second one interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: serve(parse_settings(ServeSettings, __doc__, argv)))
