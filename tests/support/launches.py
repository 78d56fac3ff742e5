"""Trainings of a few seconds on two workers, launched as a user does; and what their log lines say was done."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from prepared import BINS, FRAMES

from ast_core.weights import checkpoint

ROOT = Path(__file__).resolve().parents[2]
STEPS_AN_EPOCH = 7


def training_flags(folder: Path, run: str, epochs: int) -> list[str]:
    """Return flags of `train.py` for shards of 42 clips in `folder`; only the end of an epoch commits a checkpoint."""
    text = f"""
    --recipe esc50_small --run-dir {folder / run} --shards {folder / "shards"} --workers 2
    --tracking sqlite:///{folder / "mlflow.db"} --experiment test --data.train-splits train --data.test-split test
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    --model.patch-freq {BINS} --model.freq-stride {BINS}
    --augment.freq-mask-bins 4 --augment.time-mask-frames 8
    --optim.epochs {epochs} --optim.batch-size 6 --optim.checkpoint-every-steps 1000 --optim.average-first-epoch 2
    """
    return text.split()


def last_step(log: str, run: Path, rank: int) -> int:
    """Return the last step that a rank of a run logged with AST_LOG_LEVEL=DEBUG."""
    whose = re.escape(f"run={run} member=seed-0 rank={rank}")
    steps = [int(step) for step in re.findall(rf'{whose} msg="Step (\d+),', log)]
    assert steps, log[-3000:]
    assert steps == list(range(steps[0], steps[0] + len(steps)))  # none left out, none twice
    return steps[-1]


def newest_step(member: Path) -> int:
    """Step of the newest verified checkpoint."""
    path, passed_over = checkpoint.newest(member / "checkpoints")
    assert path is not None
    assert not passed_over
    return int(path.name.removeprefix("step-"))


def of_session(leader: int) -> list[psutil.Process]:
    """Return the living processes of a launch; the launch is the leader of its session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def wait_until(ready: Callable[[], bool], alive: Callable[[], bool], limit_s: float = 240) -> None:
    """Wait for something that a training does; fails if the training ends before."""
    deadline = time.monotonic() + limit_s
    while not ready():
        assert alive(), "the training ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_epoch(member: Path, epoch: int) -> bool:
    """Whether an epoch is committed."""
    return (member / "epochs" / f"epoch-{epoch:04d}" / checkpoint.MARKER).is_file()
