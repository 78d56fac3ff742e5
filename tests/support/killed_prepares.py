"""`prepare` in processes that are made to be killed: forked from one that has imported everything already."""

from __future__ import annotations

import contextlib
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
from forked_trainings import FORKS, preload

from pipeline.cli.stages import PrepareSettings
from pipeline.prepare import prepare
from pipeline.ray_runtime import internals

preload("ray.data", "pipeline.prepare")  # of what a process imports, nearly all


def _prepare(settings: PrepareSettings, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with internals.bind_to_loopback():  # where the tests' own Ray is
        prepare(settings)


def started(settings: PrepareSettings, log: Path) -> BaseProcess:
    """Start a driver with its own connection to the Ray of the settings; its output goes to `log`."""
    process = FORKS.Process(target=_prepare, args=(settings, log))
    process.start()
    return process


def part_makers() -> list[psutil.Process]:
    """Workers of this process's Ray that have a decoder: those that make a part. This process may have one, too."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = process.parent()
            decodes = "ast_core.audio.decoder_process" in " ".join(process.cmdline())
            if decodes and worker is not None and worker.name().startswith("ray::"):
                found.append(worker)
    return found
