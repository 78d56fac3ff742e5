"""`prepare` in processes that are made to be killed: forked from one that has imported everything already."""

from __future__ import annotations

import contextlib
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
from forked_trainings import FORKS

from ast_core.dataset.clips import Manifest
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from pipeline import prepare as stage
from pipeline.cli.stages import PrepareSettings
from pipeline.prepare import prepare
from pipeline.ray_runtime import internals


def _prepare(settings: PrepareSettings, log: Path, manifest: Manifest | None) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if manifest is not None:
        stage.list_clips = lambda *_: (manifest, TENTHS_OF_CLASSES)
    with internals.bind_to_loopback():  # where the tests' own Ray is
        prepare(settings)


def started(settings: PrepareSettings, log: Path, manifest: Manifest | None = None) -> BaseProcess:
    """Start a driver with its own connection to the Ray of the settings; its output goes to `log`.

    With a manifest, the driver takes its clips for those of the source.
    """
    process = FORKS.Process(target=_prepare, args=(settings, log, manifest))
    process.start()
    return process


def part_makers() -> list[psutil.Process]:
    """Return the workers of this process's Ray that make a part: they have a decoder and are not idle.

    A worker keeps its decoder for the next part, which may be a later test's; this process may have one, too.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = process.parent()
            if "ast_core.audio.decoder_process" in " ".join(process.cmdline()) and worker is not None:
                title = " ".join(worker.cmdline())
                found += [worker] if title.startswith("ray::") and not title.startswith("ray::IDLE") else []
    return found
