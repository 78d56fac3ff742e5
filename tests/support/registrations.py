"""Registrations that are killed: a program that has everything imported and forks one for each line it is given.

A line is JSON: `run_dir`, `tracking`, and `at`, name and number of a call after which the registration kills itself, or
`after_s`, when it is killed from outside; with neither it goes on to its end. The answer is a line, too.
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
    "the model made in the registry": ("create_registered_model", 1),  # once in a registry's life: the first
    "a model of MLflow begun": ("create_logged_model", 1),
    "in the middle of the upload": (IN_UPLOAD, 20),
    "the upload whole, not finished": ("log_artifacts", 1),
    "the version made": ("create_model_version", 1),
    "the second version made": ("create_model_version", 2),
    "described": ("update_model_version", 1),
    "the first alias set": ("set_registered_model_alias", 1),
    "the second alias set": ("set_registered_model_alias", 2),
    "the third alias set": ("set_registered_model_alias", 3),
}
"""Calls of MLflow's stores, and of the copying of files, after which to die."""
Order = dict[str, Any]


@contextmanager
def registrar(log: Path) -> Iterator[Callable[[Order], dict[str, Any]]]:
    """A running program of these; gives what takes an order and returns exit status, seconds and any error."""
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
    """Kill this process as the n-th call of that name returns."""
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
    """Kill this process once an upload has copied so many files; others are copied before."""
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
        os.dup2(2, 1)  # the answers are the parent's to write
        try:
            _register(order, write)
        except BaseException as error:  # noqa: BLE001 - the answer
            os.write(write, json.dumps(f"{type(error).__name__}: {error}").encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    timer = threading.Timer(order.get("after_s", LIMIT_S), os.kill, [child, signal.SIGKILL])
    timer.start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    timer.cancel()
    with os.fdopen(read) as answer:
        said = answer.read()
    return {"status": status, "seconds": time.monotonic() - started, "said": json.loads(said) if said else None}


def main() -> None:
    """Fork for each line."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_fork(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
