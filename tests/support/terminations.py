"""A training that is launched as a user does it and gets SIGTERM, and what its driver and ranks left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launches import ROOT, has_epoch, last_step, newest_step, of_session, training_flags, wait_until
from mlflow import MlflowClient
from trainings import EPOCHS

Driver = subprocess.Popen[bytes]
LOGS = "ray/session_2*/logs/worker-*.out"
"""Output of the workers, in the folder of a training's own Ray; a file's name ends with the worker's process id."""


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
    ranks_said: str
    """Output of all ranks."""


def launch(folder: Path, run: str, environment: dict[str, str], *more: str) -> Driver:
    """Start a training as a process of its own session; its output goes to `RUN.log`."""
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *training_flags(folder, run, EPOCHS), *more]
    with (folder / f"{run}.log").open("wb") as log:
        environment = environment | {"AST_LOG_LEVEL": "DEBUG"}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def rank_logs(ray_folder: Path) -> dict[Path, int]:
    """Return the rank of each worker that trained, by the file of its output, the oldest first."""
    paths = sorted(ray_folder.glob(LOGS), key=lambda path: path.stat().st_mtime)
    found = {path: re.search(r"member=seed-0 rank=(\d+)", path.read_text()) for path in paths}
    return {path: int(rank[1]) for path, rank in found.items() if rank}


def process_of(log: Path) -> int:
    """Return the process id of the worker that wrote a file of `rank_logs`."""
    return int(log.stem.rpartition("-")[2])


def terminate(
    folder: Path, run: str, *more: str, before: Callable[[Driver, Path], None] = lambda *_: None
) -> Termination:
    """Launch a training, send SIGTERM after its third epoch, and wait for its end.

    Args:
        folder: folder of the shards and the tracker.
        run: name of the run's folder.
        more: more flags.
        before: function that is called before SIGTERM, with the driver and the folder of its own Ray.
    """
    member = folder / run / "members" / "seed-0"
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        driver = launch(folder, run, others | {"RAY_TMPDIR": ray_folder}, *more)
        try:
            wait_until(lambda: has_epoch(member, 3), lambda: driver.poll() is None)
            before(driver, Path(ray_folder))
            sent = time.monotonic()
            driver.send_signal(signal.SIGTERM)
            code = driver.wait(timeout=30)
            gone_s = time.monotonic() - sent
        finally:
            for process in of_session(driver.pid):
                process.kill()
            driver.wait()
        newest = {rank: path for path, rank in rank_logs(Path(ray_folder)).items()}
        logs = [newest[rank].read_text() for rank in range(2)]
        ranks_said = "".join(path.read_text() for path in Path(ray_folder).glob(LOGS))
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
        last_steps=(last_step(logs[0], folder / run, 0), last_step(logs[1], folder / run, 1)),
        complete=has_epoch(member, EPOCHS),
        status=_tracked_status(folder, run),
        ranks_said=ranks_said,
    )


def _tracked_status(folder: Path, run: str) -> str:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], f"tags.run_dir = '{folder / run}'")
    return str(found.info.status)
