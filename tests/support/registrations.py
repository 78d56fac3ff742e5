"""Registrations that are killed: a program with all imports done that forks a registration for each line of its input.

A line is JSON with `run_dir` and `tracking`. With `at`, a name and a number, the registration kills itself after that
call; with `after_s` the program kills it after that time; otherwise it runs to its end. The answer is one line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

from pipeline.cli.stages import RegisterSettings
from pipeline.register import register

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
KILLED, DONE = -signal.SIGKILL, 0
IN_UPLOAD = "copyfile"
POINTS = {
    "after the model was created in the registry": (
        "create_registered_model",
        1,
    ),  # the registry sees this call only once
    "after the logged model was begun": ("create_logged_model", 1),
    "in the middle of the upload": (IN_UPLOAD, 20),
    "after the upload, before it is marked as finished": ("log_artifacts", 1),
    "after the version was created": ("create_model_version", 1),
    "after the second version was created": ("create_model_version", 2),
    "after the description was set": ("update_model_version", 1),
    "after the first alias was set": ("set_registered_model_alias", 1),
    "after the second alias was set": ("set_registered_model_alias", 2),
    "after the third alias was set": ("set_registered_model_alias", 3),
}
"""Calls of MLflow's stores and of `copyfile` after which a registration kills itself, by name and number."""
Order = dict[str, Any]


@contextmanager
def start_registrations(log: Path) -> Iterator[Callable[[Order], dict[str, Any]]]:
    """Start the program; yield a function that takes an order and returns exit status, seconds and result or error."""
    with log.open("ab") as errors:
        program = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert program.stdin is not None
        assert program.stdout is not None

        def order(what: Order) -> dict[str, Any]:
            program.stdin.write(json.dumps(what) + "\n")
            program.stdin.flush()
            answer: dict[str, Any] = json.loads(program.stdout.readline())
            return answer

        try:
            yield order
        finally:
            program.kill()
            program.wait()


def _register(order: Order, output: int) -> None:
    if "at" in order:
        name, number = order["at"]
        if name == IN_UPLOAD:
            _die_in_upload(number)
        else:
            _die_after(name, number)
    settings = RegisterSettings(
        run_dir=Path(order["run_dir"]), tracking=order["tracking"], experiment="test", model_name="killed"
    )
    os.write(output, json.dumps(register(settings)).encode())


def _die_after(name: str, number: int) -> None:
    """Kill this process when the call of that name returns for the n-th time."""
    owner = next(own for own in (Registry, Tracking, LocalArtifactRepository, shutil) if hasattr(own, name))
    real, calls = getattr(owner, name), []

    def call(*args: Any, **options: Any) -> Any:
        result = real(*args, **options)
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


def _die_in_upload(number: int) -> None:
    """Kill this process when the upload has copied `number` files; files copied before the upload do not count."""
    real = LocalArtifactRepository.log_artifacts

    def upload(*args: Any, **options: Any) -> Any:
        _die_after(IN_UPLOAD, number)
        return real(*args, **options)

    LocalArtifactRepository.log_artifacts = upload


def _fork(order: Order) -> dict[str, Any]:
    started = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)  # only the parent writes answers to stdout
        try:
            _register(order, write)
        except BaseException as error:  # noqa: BLE001 - the parent reports it
            os.write(write, json.dumps(f"{type(error).__name__}: {error}").encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    timer = threading.Timer(order.get("after_s", LIMIT_S), os.kill, [child, signal.SIGKILL])
    timer.start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    timer.cancel()
    with os.fdopen(read) as answer:
        content = answer.read()
    return {"status": status, "seconds": time.monotonic() - started, "answer": json.loads(content) if content else None}


def main() -> None:
    """Fork a registration for each line of the input."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_fork(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
