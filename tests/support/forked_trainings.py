"""Trainings without Ray whose ranks are processes that a test can kill.

The processes are forked from a server that has torch imported, so a start takes about a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prepared import FRONT_END, write_shards

from ast_core.config import AugmentConfig, DataConfig, Job, ModelConfig, OptimConfig
from ast_core.training.callback import StepResult, TrainerCallback
from ast_core.weights import checkpoint

FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ["ast_core.training.trainer", "pandas", "torch._dynamo"]  # the last two take seconds on their first use


def preload(*modules: str) -> None:
    """Add modules that the server of all forks imports when it starts; it does not find those of `tests`."""
    PRELOADED.extend(name for name in modules if name not in PRELOADED)
    FORKS.set_forkserver_preload(PRELOADED)


preload()
LIMIT_S = 300
"""Longest wait for a training; on an idle machine it ends within seconds."""
TIMES = ("seconds", "clips_per_s")
"""Columns of `metrics.jsonl` that differ between equal runs."""


def job_in(folder: Path, clips: int = 24, held_out: int = 7, **optim: Any) -> Job:
    """Return a training of a small model: two epochs of four steps, a checkpoint every second step."""
    write_shards(folder / "shards", {"train": clips, "test": held_out})
    model = ModelConfig(
        backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch"
    )
    values: dict[str, Any] = {
        "epochs": 2, "batch_size": 6, "learning_rate": 1e-3, "warmup_steps": 3, "loss": "cross_entropy",
        "sampler": "shuffle", "checkpoint_every_steps": 2, "weights": "last",
    } | optim  # fmt: skip
    return Job(
        folder=folder / "member", shards=folder / "shards", seed=0, data=DataConfig(mean=-6.0, std=4.0),
        front_end=FRONT_END, model=model, augment=AugmentConfig(freq_mask_bins=4, time_mask_frames=8, noise=True),
        optim=OptimConfig(**values),
    )  # fmt: skip


def move_to(job: Job, name: str) -> Job:
    """Return the same training in another member folder."""
    return dataclasses.replace(job, folder=job.folder.with_name(name))


class EventLog(TrainerCallback):
    """Callback that writes each event of a rank as a line of a file, which survives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def on_train_begin(self, step: int) -> None:
        """Write `began STEP SECONDS`; all processes of a machine share the clock."""
        self._file.write(f"began {step} {time.monotonic()}\n")

    def on_step_end(self, done: StepResult) -> None:
        """Write `step STEP SECONDS`."""
        self._file.write(f"step {done.step} {time.monotonic()}\n")


Fault = Callable[[int], Any]
"""Function that each rank calls with its number before it trains; it may return a callback instead of the log."""


def _run_rank(job: Job, rank: int, world: int, meeting: Path, log: Path, fault: Fault | None, threads: int) -> None:
    import torch  # noqa: PLC0415  # imported in the rank, not in the test's process
    from torch import distributed  # noqa: PLC0415

    from ast_core.errors import UserError  # noqa: PLC0415
    from ast_core.training.trainer import fit  # noqa: PLC0415

    torch.set_num_threads(threads)
    callback = (fault(rank) if fault else None) or EventLog(log)
    if world > 1:
        distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    try:
        fit(job, rank, world, torch.device("cpu"), callback)
    except UserError as error:
        log.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(1)  # an ordinary exit closes gloo, which can wait forever for a rank that has ended
    if world > 1:
        distributed.destroy_process_group()


class Training:
    """Processes of a training that runs, one for each rank.

    Args:
        job: the training.
        world: number of ranks.
        fault: function that each rank calls before it trains.
        threads: threads of each rank. The bits of the weights depend on it.
    """

    def __init__(self, job: Job, world: int = 1, fault: Fault | None = None, threads: int = 1) -> None:
        self.job = job
        self.logs = [job.folder.parent / f"{job.folder.name}-rank-{rank}.txt" for rank in range(world)]
        for path in self.logs:
            path.unlink(missing_ok=True)
            path.with_suffix(".error").unlink(missing_ok=True)
        meeting = Path(tempfile.mkdtemp(dir=job.folder.parent)) / "ranks"
        arguments = [(job, rank, world, meeting, self.logs[rank], fault, threads) for rank in range(world)]
        self.ranks = [FORKS.Process(target=_run_rank, args=own) for own in arguments]
        for process in self.ranks:
            process.start()

    def lines(self, rank: int = 0) -> list[str]:
        """Return the complete lines of a rank's log so far."""
        path = self.logs[rank]
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def steps(self, rank: int = 0) -> list[int]:
        """Return the steps that a rank did."""
        return [int(line.split()[1]) for line in self.lines(rank) if line.startswith("step")]

    def began_at(self) -> int | None:
        """Return the step that the training continued from; None if it has not begun."""
        return next((int(line.split()[1]) for line in self.lines() if line.startswith("began")), None)

    def seconds(self) -> float:
        """Return the seconds from the start to the last step."""
        times = [float(line.split()[2]) for line in self.lines()]
        return times[-1] - times[0]

    def alive(self) -> bool:
        """Return whether rank 0 runs."""
        return self.ranks[0].is_alive()

    def wait(self) -> list[int]:
        """Wait for all ranks and return their exit codes; fail if a rank hangs."""
        deadline = time.monotonic() + LIMIT_S
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.ranks]
        self.kill()
        assert None not in codes, f"hung: {codes}"
        return [code for code in codes if code is not None]

    def kill(self) -> bool:
        """Kill all ranks with SIGKILL; return whether rank 0 died of it."""
        for process in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
        for process in self.ranks:
            process.join()
        return self.ranks[0].exitcode == -signal.SIGKILL

    def errors(self) -> list[str]:
        """Return the `UserError` that each rank ended with; empty for a rank without one."""
        paths = [path.with_suffix(".error") for path in self.logs]
        return [path.read_text(encoding="utf-8") if path.exists() else "" for path in paths]


@contextlib.contextmanager
def running(job: Job, world: int = 1, fault: Fault | None = None, threads: int = 1) -> Iterator[Training]:
    """Start a training, and kill what remains of it at the end."""
    training = Training(job, world, fault, threads)
    try:
        yield training
    finally:
        training.kill()


def train(job: Job, world: int = 1, fault: Fault | None = None, threads: int = 1) -> Training:
    """Run a training to its end."""
    with running(job, world, fault, threads) as training:
        training.wait()
        return training


def newest_complete_step(folder: Path) -> int:
    """Return the step of the newest checkpoint whose files have the hashes in its marker; 0 without one.

    The check does not use the code under test.
    """
    for path in sorted(folder.glob("checkpoints/step-*"), reverse=True):
        marker = path / checkpoint.MARKER
        if marker.is_file():
            hashes = json.loads(marker.read_text())["sha256"]
            if all(hashlib.sha256((path / name).read_bytes()).hexdigest() == own for name, own in hashes.items()):
                return int(path.name.removeprefix("step-"))
    return 0


def result_of(job: Job) -> dict[str, Any]:
    """Return what must be bitwise equal: tensors of the last checkpoint and of all epochs, metrics and identity."""
    newest, passed_over = checkpoint.newest(job.folder / "checkpoints")
    assert newest is not None
    assert not passed_over
    paths = [*newest.glob("*.safetensors"), *job.folder.glob("epochs/epoch-*/*.safetensors")]
    bits = {str(path.relative_to(job.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    lines = (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
    return {"bits": bits, "rows": [json.dumps(row) for row in rows], "state": checkpoint.read_state(newest)["identity"]}


def temporary_files(folder: Path) -> list[Path]:
    """Return the temporary files that killed writers left under a member's folder."""
    return [path for path in folder.rglob(".*") if path.is_file()]
