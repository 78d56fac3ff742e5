"""Plain trainings without Ray, each rank a process of its own that can be killed: forked, so a start costs a second."""

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
FORKS.set_forkserver_preload(
    ["ast_core.training.trainer", "pandas", "torch._dynamo"]
)  # the last two take seconds when first used
LIMIT_S = 300
"""For whatever a training must do; seconds on an idle machine."""
TIMES = ("seconds", "clips_per_s")


def job_in(folder: Path, clips: int = 24, held_out: int = 7, **optim: Any) -> Job:
    """A training of a small model in `folder`, four steps an epoch, two epochs, a checkpoint every second step."""
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


def beside(job: Job, name: str) -> Job:
    """The same training in another folder."""
    return dataclasses.replace(job, folder=job.folder.with_name(name))


class Diary(TrainerCallback):
    """Writes down what a rank is told, a line each, so that it outlives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def on_train_begin(self, step: int) -> None:
        """As `began STEP SECONDS`, on a clock that all processes of a machine share."""
        self._file.write(f"began {step} {time.monotonic()}\n")

    def on_step_end(self, done: StepResult) -> None:
        """As `step STEP SECONDS`."""
        self._file.write(f"step {done.step} {time.monotonic()}\n")


Fault = Callable[[int], Any]
"""Called in each rank, with its number, before it trains; may give an callback instead of the diary."""


def _rank(job: Job, rank: int, world: int, meeting: Path, diary: Path, fault: Fault | None) -> None:
    import torch  # noqa: PLC0415  # here, and not in the process that forks
    from torch import distributed  # noqa: PLC0415

    from ast_core.errors import UserError  # noqa: PLC0415
    from ast_core.training.trainer import fit  # noqa: PLC0415

    torch.set_num_threads(1)
    callback = (fault(rank) if fault else None) or Diary(diary)
    if world > 1:
        distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    try:
        fit(job, rank, world, torch.device("cpu"), callback)
    except UserError as error:
        diary.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(1)  # gloo's own end can wait for a rank that has left for ever
    if world > 1:
        distributed.destroy_process_group()


class Training:
    """A training's ranks while they run."""

    def __init__(self, job: Job, world: int = 1, fault: Fault | None = None) -> None:
        self.job = job
        self.diaries = [job.folder.parent / f"{job.folder.name}-rank-{rank}.txt" for rank in range(world)]
        for path in self.diaries:
            path.unlink(missing_ok=True)
            path.with_suffix(".error").unlink(missing_ok=True)
        meeting = Path(tempfile.mkdtemp(dir=job.folder.parent)) / "ranks"
        arguments = [(job, rank, world, meeting, self.diaries[rank], fault) for rank in range(world)]
        self.ranks = [FORKS.Process(target=_rank, args=own) for own in arguments]
        for process in self.ranks:
            process.start()

    def lines(self, rank: int = 0) -> list[str]:
        """What a rank's diary says by now, whole lines only."""
        path = self.diaries[rank]
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def steps(self, rank: int = 0) -> list[int]:
        """The steps that a rank did."""
        return [int(line.split()[1]) for line in self.lines(rank) if line.startswith("step")]

    def began_at(self) -> int | None:
        """The step that it went on from; None if it never came so far."""
        return next((int(line.split()[1]) for line in self.lines() if line.startswith("began")), None)

    def seconds(self) -> float:
        """From its beginning to its last step."""
        times = [float(line.split()[2]) for line in self.lines()]
        return times[-1] - times[0]

    def alive(self) -> bool:
        """Whether rank 0 runs."""
        return self.ranks[0].is_alive()

    def wait(self) -> list[int]:
        """The ranks' exit codes; fails if one hangs."""
        deadline = time.monotonic() + LIMIT_S
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.ranks]
        self.kill()
        assert None not in codes, f"hung: {codes}"
        return [code for code in codes if code is not None]

    def kill(self) -> bool:
        """`kill -9` all ranks; whether rank 0 died of it."""
        for process in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
        for process in self.ranks:
            process.join()
        return self.ranks[0].exitcode == -signal.SIGKILL

    def errors(self) -> list[str]:
        """What each rank ended with."""
        paths = [path.with_suffix(".error") for path in self.diaries]
        return [path.read_text(encoding="utf-8") if path.exists() else "" for path in paths]


@contextlib.contextmanager
def running(job: Job, world: int = 1, fault: Fault | None = None) -> Iterator[Training]:
    """A training that does not outlive the test."""
    training = Training(job, world, fault)
    try:
        yield training
    finally:
        training.kill()


def train(job: Job, world: int = 1, fault: Fault | None = None) -> Training:
    """A training, run to its end."""
    with running(job, world, fault) as training:
        training.wait()
        return training


def whole_step(folder: Path) -> int:
    """Step of the newest checkpoint whose files all have the hashes that its marker says, checked without our code."""
    for path in sorted(folder.glob("checkpoints/step-*"), reverse=True):
        marker = path / checkpoint.MARKER
        if marker.is_file():
            hashes = json.loads(marker.read_text())["sha256"]
            if all(hashlib.sha256((path / name).read_bytes()).hexdigest() == own for name, own in hashes.items()):
                return int(path.name.removeprefix("step-"))
    return 0


def result_of(job: Job) -> dict[str, Any]:
    """All that must be the same to the bit: the tensors' files of the last checkpoint and of every epoch, the curve."""
    newest, passed_over = checkpoint.newest(job.folder / "checkpoints")
    assert newest is not None
    assert not passed_over
    paths = [*newest.glob("*.safetensors"), *job.folder.glob("epochs/epoch-*/*.safetensors")]
    bits = {str(path.relative_to(job.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    lines = (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
    return {"bits": bits, "rows": [json.dumps(row) for row in rows], "state": checkpoint.read_state(newest)["identity"]}


def stumps(folder: Path) -> list[Path]:
    """What killed writers left half written under a member's folder."""
    return [path for path in folder.rglob(".*") if path.is_file()]
