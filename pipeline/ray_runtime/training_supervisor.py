"""Run the workers of a training to the end, and start them again when some are lost."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ray.exceptions import OutOfDiskError
from ray.train import TrainingFailedError
from rich.console import Console

from ast_core.config import Job
from ast_core.errors import Preempted, UserError
from ast_core.storage import writer_fence
from ast_core.storage.atomic_files import list_stored
from ast_core.storage.disk_space import FULL_DISK_ERRNOS, write_error
from ast_core.storage.object_store import ObjectStore
from ast_core.training.member_folder import MemberFolder
from ast_core.weights import checkpoint
from pipeline.cli.gpu_choice import Gpus
from pipeline.ray_runtime import cluster_size, connection, internals, preemption
from pipeline.ray_runtime.liveness import LivenessWatch
from pipeline.ray_runtime.train_rank import TrainRankConfig
from pipeline.ray_runtime.worker_group import WorkerGroup, scratch_folder
from pipeline.reporting import prometheus

NO_DEVICE = ("ProcessGroupNCCL is only supported with GPUs", "Distributed package doesn't have NCCL built in")
"""Words of torch's errors, before a rank's first line, on a node without a GPU or with a torch for CPUs. They have no
class of their own."""
RESTARTS = 3
"""Losses of workers in a row, without a new checkpoint in between, after which a training still goes on."""


def placement_group_file(folder: Path) -> Path:
    """Return the file in which a member's rank 0 notes the placement group of the training."""
    return folder / ".placement-group"


def supervise(job: Job, workers: int, gpus: Gpus, stores: tuple[ObjectStore, ...], group: WorkerGroup) -> None:
    """Train to the end; start the workers again if they die of anything but an error that the user must fix.

    Ray's own restarts would repeat those errors too, and its list of checkpoints does not survive a kill inside a
    write. Our checkpoints do, so each start is a fresh run to Ray.

    Args:
        job: the training.
        workers: number of ranks.
        gpus: value of `--gpus`.
        stores: stores of which the run's folders are working copies.
        group: workers of the training before, if there was one, and of the next.

    Raises:
        UserError: an error that the user must fix, or more losses in a row than `RESTARTS`.
    """
    scratch, losses = scratch_folder(job.folder), 0
    try:
        while True:
            before, watch = _newest_step(job), LivenessWatch(f"train:{job.folder}", workers)
            try:
                with watch:
                    preemption.forget_training(job.folder)
                    generation = writer_fence.start_generation(job.folder)
                    config = TrainRankConfig(
                        job, watch.name, placement_group_file(job.folder), stores, gpus, generation
                    )
                    return group.train(config, workers, cluster_size.uses_gpu(gpus))
            except TrainingFailedError as error:
                if (user_error := _cause(error, UserError)) is not None:
                    raise type(user_error)(str(user_error)) from None
                _require_disk(error, scratch)
                _require_device(error)
                preempted = _cause(error, Preempted)
                losses = (losses if _newest_step(job) == before else 0) + (preempted is None)
                if losses > RESTARTS:
                    raise UserError(
                        f"Workers of {job.folder.name} died {losses} times without a new checkpoint between; the last "
                        f"time: {_describe_loss(watch, error)} ({error}). The newest checkpoint is kept: fix the cause "
                        "and run the same command again."
                    ) from error
                _report_restart(job, watch, preempted or error)
            except OSError as error:
                if error.errno not in FULL_DISK_ERRNOS:
                    raise
                raise write_error(scratch, error, 0, 0) from error  # Ray's own files are in the run's folder
            except KeyboardInterrupt:
                for sentence in preemption.ask_trainings_to_stop([job.folder]):
                    Console(stderr=True).print(sentence)
                raise
    finally:
        writer_fence.end_generation(job.folder)


def _newest_step(job: Job) -> str:
    """Return the name of the newest committed checkpoint, here or in the store."""
    folder = MemberFolder(job.folder).checkpoints
    markers = [*folder.glob(f"*/{checkpoint.MARKER}"), *list_stored(folder)]
    return max((path.parent.name for path in markers if path.name == checkpoint.MARKER), default="")


def _require_disk(error: TrainingFailedError, scratch: Path) -> None:
    """Raise NoRoomError if Ray's own files met a full disk: workers that are started again would meet it again."""
    if _cause(error, OutOfDiskError) is not None:
        raise connection.spill_disk_error() from error
    system = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if str(system.strerror) in str(error) or getattr(_cause(error, OSError), "errno", 0) in FULL_DISK_ERRNOS:
        raise write_error(scratch, system, 0, 0) from error


def _require_device(error: TrainingFailedError) -> None:
    """Raise UserError if a node has GPUs for Ray but none for torch: workers that are started again would have none."""
    if any(words in str(error) for words in NO_DEVICE):
        found = re.search(r"\bip=([^,)\s]+)", str(error))
        raise UserError(
            f"Ray started a worker on a GPU of {found[1] if found else 'a node'}, but torch finds no GPU "
            "there. Check the node's driver (nvidia-smi) and that its image has a torch for GPUs, or give --gpus no."
        ) from error


def _report_restart(job: Job, watch: LivenessWatch, error: BaseException) -> None:
    console = Console(stderr=True, soft_wrap=True)
    if isinstance(error, Preempted):
        console.print(f"A node is taken away: {error} It goes on elsewhere, once there is room.")
    else:
        console.print(
            f"Workers were lost: {_describe_loss(watch, error)}. Starting again from the checkpoint.", markup=False
        )
    prometheus.count_restart(job, "preempted" if isinstance(error, Preempted) else "lost")


def _describe_loss(watch: LivenessWatch, error: BaseException) -> str:
    """Return which ranks died or no longer answer; the errors of the others only say that they lost these."""
    named = [
        f"rank {rank} ({watch.processes.get(f'rank {rank}', 'of unknown process')}) {fate}"
        for rank, failure in sorted(getattr(error, "worker_failures", {}).items())
        if (fate := internals.died_or_silent(failure))
    ]
    return ", ".join(named) or type(error).__name__


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """Return the first error of a kind among a training failure's causes; None if there is no such error."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error]:
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, kind):
                return seen
            seen = internals.raised_in_worker(seen) or seen.__cause__
    return None
