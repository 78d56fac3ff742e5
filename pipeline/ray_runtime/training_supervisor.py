"""Run the workers of a training to the end, and start them again when some are lost."""

from __future__ import annotations

import errno
import functools
import os
import re
import uuid
from pathlib import Path

from ray.exceptions import OutOfDiskError
from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.torch import TorchTrainer
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
from pipeline.ray_runtime import cluster_size, connection, internals, placement_groups, preemption
from pipeline.ray_runtime.liveness import LivenessWatch
from pipeline.ray_runtime.train_rank import TrainRankConfig, train_rank
from pipeline.reporting import prometheus
from pipeline.run_folder import downloads, sync

TRAIN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # ours knows the driver's SIGTERM too
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # with Ray's 2 s, every end and every loss is noticed so much later
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S: "5",  # Ray's 30 s are waited for ranks that hang in a collective
}
"""Settings of Ray Train, unless the environment of the training's driver has others. Ray Train's own health check is
only to notice workers that died; `LivenessWatch` ends those that are stopped."""


def configure_ray_train() -> None:
    """Set the environment variables of `TRAIN`, which Ray Train's controller and workers take from this process."""
    for name, value in TRAIN.items():
        os.environ.setdefault(name, value)
    internals.propagate_to_train_workers(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)  # Ray hands only some on by itself


NO_DEVICE = ("ProcessGroupNCCL is only supported with GPUs", "Distributed package doesn't have NCCL built in")
"""Words of torch's errors, before a rank's first line, on a node without a GPU or with a torch for CPUs. They have no
class of their own."""
RESTARTS = 3
"""Losses of workers in a row, without a new checkpoint in between, after which a training still goes on."""


def placement_group_file(folder: Path) -> Path:
    """Return the file in which a member's rank 0 notes the placement group of the training."""
    return folder / ".placement-group"


def supervise(job: Job, workers: int, gpus: Gpus, stores: tuple[ObjectStore, ...]) -> None:
    """Run the workers to the end; start them again if they die of anything but an error that the user must fix.

    Ray's own restarts would repeat those errors too, and its list of checkpoints does not survive a kill inside a
    write. Our checkpoints do, so each start is a fresh run to Ray.

    Args:
        job: the training.
        workers: number of ranks.
        gpus: value of `--gpus`.
        stores: stores of which the run's folders are working copies.

    Raises:
        UserError: an error that the user must fix, or more losses in a row than `RESTARTS`.
    """
    scratch, losses = job.folder / ".ray", 0
    try:
        while True:
            before, watch = _newest_step(job), LivenessWatch(f"train:{job.folder}", workers)
            try:
                with watch:
                    return _fit_once(job, workers, gpus, stores, scratch, watch)
            except TrainingFailedError as error:
                if (user_error := _cause(error, UserError)) is not None:
                    raise UserError(str(user_error)) from None
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
        sync.remove_scratch(scratch)


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


def _fit_once(
    job: Job, workers: int, gpus: Gpus, stores: tuple[ObjectStore, ...], scratch: Path, watch: LivenessWatch
) -> None:
    held = placement_group_file(job.folder)
    downloads.download_if_changed(held)
    placement_groups.release_placement_group(held)  # of a launch whose controller was killed
    placement_groups.release_own_placement_groups()
    if gpus == "yes":
        placement_groups.wait_for_gpus(workers, held)
    configure_ray_train()
    preemption.forget_training(job.folder)
    config = TrainRankConfig(job, watch.name, held, stores, gpus, writer_fence.start_generation(job.folder))
    TorchTrainer(
        functools.partial(train_rank, config),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=cluster_size.uses_gpu(gpus)),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            **sync.ray_storage_arguments(scratch),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]  # mypy sees an older class
        ),
    ).fit()


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
