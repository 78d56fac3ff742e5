"""A training that is launched as a user does it and gets SIGTERM, and what its driver and ranks left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from launches import ROOT, has_epoch, last_step, newest_step, of_session, training_flags, wait_until
from mlflow import MlflowClient
from trainings import EPOCHS

Driver = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Termination:
    """A training after SIGTERM to its driver."""

    run: Path
    """Folder of the run."""
    exit_code: int
    """Exit code of the driver."""
    gone_s: float
    """Seconds from the signal to the end of the driver."""
    said: str
    """Output of the driver."""
    stopped_at_step: int
    """Step that the driver reported."""
    committed_step: int
    """Step of the newest checkpoint."""
    last_steps: tuple[int, int]
    """Last step that each rank logged."""
    complete: bool
    """Whether the last epoch was committed."""
    status: str
    """Status of the MLflow run."""


def launch(folder: Path, run: str, environment: dict[str, str], *more: str) -> Driver:
    """Start a training as a process of its own session; its output goes to `RUN.log`."""
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *training_flags(folder, run, EPOCHS), *more]
    with (folder / f"{run}.log").open("wb") as log:
        environment = environment | {"AST_LOG_LEVEL": "DEBUG"}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def terminate(folder: Path, run: str) -> Termination:
    """Launch a training, send SIGTERM after its third epoch, and wait for its end."""
    member = folder / run / "members" / "seed-0"
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        driver = launch(folder, run, others | {"RAY_TMPDIR": ray_folder})
        try:
            wait_until(lambda: has_epoch(member, 3), lambda: driver.poll() is None)
            sent = time.monotonic()
            driver.send_signal(signal.SIGTERM)
            code = driver.wait(timeout=30)
            gone_s = time.monotonic() - sent
        finally:
            for process in of_session(driver.pid):
                process.kill()
            driver.wait()
        log = "".join(path.read_text() for path in Path(ray_folder).glob("ray/session_2*/logs/worker-*.out"))
    said = (folder / f"{run}.log").read_text()
    left = re.search(r"seed-0 stopped at step (\d+)", said)
    assert left, said
    return Termination(
        run=folder / run,
        exit_code=code,
        gone_s=gone_s,
        said=said,
        stopped_at_step=int(left[1]),
        committed_step=newest_step(member),
        last_steps=(last_step(log, folder / run, 0), last_step(log, folder / run, 1)),
        complete=has_epoch(member, EPOCHS),
        status=_tracked_status(folder, run),
    )


def _tracked_status(folder: Path, run: str) -> str:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], f"tags.run_dir = '{folder / run}'")
    return str(found.info.status)
