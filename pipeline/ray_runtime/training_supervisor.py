"""Run the workers of a training to the end, and start them again when some are lost."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

from ray.exceptions import OutOfDiskError
from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from rich.console import Console

from ast_core.config import Job
from ast_core.errors import Preempted, UserError
from ast_core.storage import writer_fence
from ast_core.storage.atomic_files import list_stored
from ast_core.storage.disk_space import FULL_DISK_ERRNOS, write_error
from ast_core.storage.object_store import ObjectStore
from ast_core.training.member_folder import MemberFolder
from ast_core.weights import checkpoint
from pipeline.ray_runtime import cluster_size, connection, placement_groups, preemption, watched_start
from pipeline.ray_runtime.lean_trainer import Trainer
from pipeline.ray_runtime.train_rank import train_rank
from pipeline.reporting import prometheus
from pipeline.run_folder import sync

TRAIN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # ours knows the driver's SIGTERM too
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # with Ray's 2 s, every end and every loss is noticed so much later
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",  # Ray's 600 s is long for a worker that is stopped
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S: "5",  # Ray's 30 s are waited for a stopped one, too, which is then killed
}
"""How Ray Train watches workers, unless the environment of the training's driver says otherwise."""


def configure_ray_train() -> None:
    """Give Ray Train the settings of `TRAIN`, which its controller and workers take from this process."""
    for name, value in TRAIN.items():
        os.environ.setdefault(name, value)
    ENV_VARS_TO_PROPAGATE.add(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)  # the controller reads it, and gets no other way


RESTARTS = 3
"""Times that lost workers are started again without a new checkpoint between; a long training may lose many more."""


def placement_group_file(folder: Path) -> Path:
    """Where a member's workers note what they hold of the cluster."""
    return folder / ".placement-group"


def supervise(job: Job, workers: int, stores: tuple[ObjectStore, ...]) -> None:
    """Run the workers to the end; start them again if they die of anything but an error that the user must mend.

    Ray's own restarts would repeat those errors too, and its list of checkpoints does not survive a kill inside a
    write; ours do, so each start is a fresh run to Ray.
    """
    scratch, losses = job.folder / ".ray", 0
    try:
        while True:
            before = _newest_step(job)
            try:
                return _fit_once(job, workers, stores, scratch)
            except TrainingFailedError as error:
                if (user_error := _cause(error, UserError)) is not None:
                    raise UserError(str(user_error)) from None
                _require_disk(error, scratch)
                preempted = _cause(error, Preempted)
                losses = (losses if _newest_step(job) == before else 0) + (preempted is None)
                if losses > RESTARTS:
                    raise UserError(
                        f"Workers of {job.folder.name} died {losses} times without a new checkpoint between; the last "
                        f"time: {_lost(job, error)} ({error}). The newest checkpoint is kept: run the same command "
                        "again once the cause is mended."
                    ) from error
                _note_restart(job, preempted or error)
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
    """Name of the newest committed checkpoint, wherever it was committed."""
    folder = MemberFolder(job.folder).checkpoints
    markers = [*folder.glob(f"*/{checkpoint.MARKER}"), *list_stored(folder)]
    return max((path.parent.name for path in markers if path.name == checkpoint.MARKER), default="")


def _require_disk(error: TrainingFailedError, scratch: Path) -> None:
    """`NoRoomError`, if Ray's own files met a full disk: workers that are started again meet it again."""
    if _cause(error, OutOfDiskError) is not None:
        raise connection.spill_disk_error() from error
    system = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if str(system.strerror) in str(error) or getattr(_cause(error, OSError), "errno", 0) in FULL_DISK_ERRNOS:
        raise write_error(scratch, system, 0, 0) from error


def _note_restart(job: Job, error: BaseException) -> None:
    console = Console(stderr=True, soft_wrap=True)
    if isinstance(error, Preempted):
        console.print(f"A node is taken away: {error} It goes on elsewhere, once there is room.")
    else:
        console.print(f"Workers were lost: {_lost(job, error)}. Starting again from the checkpoint.", markup=False)
    prometheus.count_restart(job, "preempted" if isinstance(error, Preempted) else "lost")


def _lost(job: Job, error: BaseException) -> str:
    """Which workers died or no longer answer: the others' errors are of having lost these."""
    failures = getattr(error, "worker_failures", {})
    fates = {WorkerHealthCheckFailedError: "died", WorkerHealthCheckTimeoutError: "stopped, for it does not answer"}
    known = preemption.rank_processes(job.folder)
    named = [
        f"rank {rank} ({known.get(rank, 'of unknown process')}) {fate}"
        for rank, failure in sorted(failures.items())
        for kind, fate in fates.items()
        if isinstance(failure, kind)
    ]
    return ", ".join(named) or type(error).__name__


def _fit_once(job: Job, workers: int, stores: tuple[ObjectStore, ...], scratch: Path) -> None:
    sync.download_if_changed(placement_group_file(job.folder))
    placement_groups.release_placement_group(
        placement_group_file(job.folder)
    )  # of a launch whose controller was killed
    placement_groups.release_own_placement_groups()
    configure_ray_train()
    preemption.forget_ranks(job.folder)
    gpu = cluster_size.uses_gpu()
    config = {
        "job": job,
        "held": placement_group_file(job.folder),
        "stores": stores,
        "generation": writer_fence.start_generation(job.folder),
    }
    trainer = Trainer(
        train_rank,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            **sync.ray_storage_arguments(scratch),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]  # mypy sees an older class
        ),
    )
    with watched_start.watched(job.folder, workers):
        trainer.fit()


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first error of a kind among a training failure's causes."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error]:
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, kind):
                return seen
            seen = getattr(seen, "_base_exc", None) or seen.__cause__
    return None
